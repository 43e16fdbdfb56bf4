"""Compose images from the command line.

    python run_inference.py image --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
    python run_inference.py image --background room.png --object dog.png \\
        --instruction "Place the dog behind the sofa"
    python run_inference.py replay out.png
    python run_inference.py batch jobs.jsonl --out outputs/batch --shard 0/4
    python run_inference.py dreambooth --objects FOLDER --backgrounds FOLDER --out outputs/dreambooth

Defaults come from configs/inference.yaml; flags override them.  `--help` after a verb lists everything.
"""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from compose import ComposeSettings, compose, load_models
from compose.batch import DEFAULTS, DreamBoothSettings, dreambooth_jobs, read_jobs, run_jobs
from compose.contact_sheet import TITLES, sheet_rows
from compose.pipeline import check_unchanged, settings_of_recipe
from compose.settings import Models
from ldm.denoise import Step
from ldm.images import encode_png, from_pm1, write_png
from ldm.result import (
    beside,
    log_result,
    output_paths,
    overwrite_setting,
    result_paths,
    set_aside,
    write_result,
)
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting
from ldm.shards import shard_of
from ldm.sheet import grid

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompositeSettings(ComposeSettings):
    """A composite and where it goes."""

    out: Path = setting(
        Path("outputs/composite.png"), help="PNG to write; with several samples a number is added to its name"
    )
    sheet: bool = setting(
        True, help="also write NAME_sheet.png: inputs, box, depth, mask and result side by side"
    )
    save_steps: int = setting(0, low=0, help="write a preview every so many steps into NAME_steps; 0 = none")
    overwrite: bool = overwrite_setting()


def run_image(settings: CompositeSettings) -> dict[str, Any]:
    """Put an object into a background at a box and a depth, or where a sentence says.

    Writes a PNG that carries its recipe, a JSON report beside it, and a contact sheet.
    """
    paths = output_paths(settings.out, settings.num_samples, settings.input_files.values())
    models = load_models(settings)
    previews = partial(write_preview, settings, models) if settings.save_steps else None
    result = compose(settings, models, on_step=previews, progress=sys.stderr.isatty())
    for index, path in enumerate(paths):
        result.save(index, path, overwrite=settings.overwrite)
    sheet = beside(settings.out, "_sheet.png") if settings.sheet else None
    if sheet:
        rows, labels = sheet_rows(result)
        write_result({sheet: encode_png(grid(rows, TITLES, labels))}, settings.overwrite)
    if result.changed_outside:
        logger.warning("%d pixels changed outside the edit region", result.changed_outside)
    summary = (
        f"{100 * result.report['visible_fraction']:.0f} % of the object visible, "
        f"{result.changed_outside} pixels changed outside the edit region"
    )
    return log_result(paths, result.report, summary, sheet)


def write_preview(settings: CompositeSettings, models: Models, step: Step) -> None:
    """Decode the first sample every few steps, and at the last, into NAME_steps/step_000.png.

    The folder of an earlier run is renamed at the first step, or its previews are removed (`overwrite`).
    """
    folder, number = beside(settings.out, "_steps"), step.index + 1
    if step.index == 0 and not settings.overwrite:
        set_aside([folder])
    elif step.index == 0:
        for old in folder.glob("step_*.png"):
            old.unlink()
    if number % settings.save_steps and number < step.total:
        return
    space = models.compositor.latent_space
    latents = step.latents[:1].to(space.mean.device, next(space.parameters()).dtype)
    write_png(folder / f"step_{number:03d}.png", from_pm1(space.decode(latents)[0].float().cpu()))


@dataclass(frozen=True)
class ReplaySettings(CheckedSettings):
    """A composite to paint again."""

    image: Path = setting(aliases=("IMAGE",), help="PNG written by the image verb")
    out: Path | None = setting(None, help="PNG to write; without it NAME_replay.png")
    overwrite: bool = overwrite_setting()


def replay(options: ReplaySettings) -> None:
    """Paint an image again from the recipe inside it.

    Gives the same bytes on the same machine; refuses when an input or the weights have changed.
    """
    image, out = options.image, options.out or beside(options.image, "_replay.png")
    settings, recipe = settings_of_recipe(image)
    output_paths(out, 1, settings.input_files.values())
    models = load_models(settings)
    check_unchanged(image, recipe, settings, models)
    result = compose(settings, models, progress=sys.stderr.isatty())
    result.with_placement(recipe.get("placement")).save(recipe["sample"], out, overwrite=options.overwrite)
    logger.info("image:   %s\nreport:  %s", *result_paths(out))


@dataclass(frozen=True)
class BatchSettings(CheckedSettings):
    """A job file and where its results go."""

    jobs: Path = setting(
        aliases=("JOBS",), help="JSONL: one job a line, the setting names of the image verb and a name"
    )
    out: Path = setting(Path("outputs/batch"), help="folder of the results, NAME.png and NAME.json each")
    shard: str = setting("0/1", help="i/n: this machine makes every n-th composite from the i-th")
    defaults: Path | None = setting(DEFAULTS, help="YAML file of settings below those of the jobs")
    root: Path = setting(Path("."), help="folder that relative paths in the jobs start from")
    overwrite: bool = overwrite_setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        shard_of(self.shard)


def batch(settings: BatchSettings | DreamBoothSettings) -> None:
    """Make all composites of a job file. Run again to continue; what is done stays.

    All jobs are checked first. A job that fails is recorded and the rest goes on; the exit code is then 1.
    """
    if isinstance(settings, DreamBoothSettings):
        jobs = dreambooth_jobs(settings)
    else:
        jobs = read_jobs(settings.jobs, settings.defaults, settings.root)
    if run_jobs(jobs, settings.out, settings.shard, settings.overwrite):
        raise typer.Exit(1)


def build_app() -> typer.Typer:
    app = new_app("Put objects into images: at a box, at a depth, behind what is nearer.")
    app.command("image")(command(CompositeSettings, run_image, DEFAULTS))
    app.command("replay")(command(ReplaySettings, replay))
    app.command("batch")(command(BatchSettings, batch))
    pairs = "Compose every object of the DreamBooth test set into every background. Run again to continue."
    app.command("dreambooth", help=pairs)(command(DreamBoothSettings, batch))
    return app


if __name__ == "__main__":
    run_module(build_app)
