"""Compose images from the command line.

    python run_inference.py image --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
    python run_inference.py image --background room.png --object dog.png \\
        --instruction "Place the dog behind the sofa"
    python run_inference.py replay out.png
    python run_inference.py batch jobs.jsonl --out outputs/batch --shard 0/4
    python run_inference.py dreambooth --objects FOLDER --backgrounds FOLDER --out outputs/dreambooth

Defaults come from configs/inference.yaml; flags override them.  `--help` after a verb lists everything.
"""

from __future__ import annotations

import json as json_format
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from compose import ComposeSettings, compose, load_models
from compose.batch import Outcome, read_jobs, run_jobs
from compose.contact_sheet import contact_sheet
from compose.dreambooth import find_test_set, pairs
from compose.output import beside, output_paths, save, with_placement
from compose.pipeline import Models, Result, card_of, sampling_of
from compose.recipe import check_unchanged, make_recipe, settings_of_recipe
from ldm.denoise import Step
from ldm.images import from_pm1, write_png
from ldm.result import result_paths
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import check_settings, setting, to_plain
from ldm.shards import shard_of

logger = logging.getLogger(__name__)

DEFAULTS = Path("configs/inference.yaml")


@dataclass(frozen=True)
class ImageSettings(ComposeSettings):
    """A composite and where it goes."""

    out: Path = setting(
        Path("outputs/composite.png"), help="PNG to write; with several samples a number is added to its name"
    )
    sheet: bool = setting(
        True, help="also write NAME_sheet.png: inputs, box, depth, mask and result side by side"
    )
    save_steps: int = setting(0, low=0, help="write a preview every so many steps into NAME_steps; 0 = none")
    json: bool = setting(False, help="print the report as one JSON object on standard output")


def run_image(settings: ImageSettings) -> None:
    """Put an object into a background at a box and a depth, or where a sentence says.

    Writes a PNG that carries its recipe, a JSON report beside it, and a contact sheet.
    """
    paths = output_paths(settings.out, settings.num_samples, settings.input_files.values())
    models = load_models(settings)
    previews = Previews(settings, models) if settings.save_steps else None
    result = compose(settings, models, on_step=previews, progress=sys.stderr.isatty())
    for index, path in enumerate(paths):
        save(result, index, path)
    if settings.sheet:
        write_png(beside(settings.out, "_sheet.png"), contact_sheet(result))
    tell(settings, result, paths)


class Previews:
    """Decodes the first sample every few steps, and at the last, into NAME_steps/step_000.png.

    Previews that an earlier run left there are removed at the first step.
    """

    def __init__(self, settings: ImageSettings, models: Models) -> None:
        self.every, self.models = settings.save_steps, models
        self.folder = beside(settings.out, "_steps")

    def __call__(self, step: Step) -> None:
        if step.index == 0:
            for old in self.folder.glob("step_*.png"):
                old.unlink()
        if (step.index + 1) % self.every and step.index + 1 < step.total:
            return
        space = self.models.compositor.latent_space
        latents = step.latents[:1].to(space.mean.device, next(space.parameters()).dtype)
        image_u8 = from_pm1(space.decode(latents)[0].float().cpu())
        write_png(self.folder / f"step_{step.index + 1:03d}.png", image_u8)


def tell(settings: ImageSettings, result: Result, paths: list[Path]) -> None:
    """Say where everything is, for people or as JSON."""
    report, changed = result.report, sum(one["changed_outside"] for one in result.report["drift"])
    if changed:
        logger.warning("%d pixels changed outside the edit region", changed)
    if settings.json:
        files = [path.as_posix() for path in paths]
        sys.stdout.write(json_format.dumps({**report, "files": files}, sort_keys=True) + "\n")
        return
    for path in paths:
        logger.info("image: %s\nreport:  %s", *result_paths(path))
    if settings.sheet:
        logger.info("sheet:   %s", beside(settings.out, "_sheet.png"))
    logger.info(
        "%.0f %% of the object visible, %d pixels changed outside the edit region, %.1f s on %s",
        100 * report["visible_fraction"],
        changed,
        report["seconds"]["total"],
        report["device"],
    )


def replay(
    image: Annotated[Path, typer.Argument(help="PNG written by the image verb", metavar="IMAGE")],
    out: Annotated[
        Path | None,
        typer.Option(help="PNG to write [default: NAME_replay.png]", metavar="PATH", show_default=False),
    ] = None,
) -> None:
    """Paint an image again from the recipe inside it.

    Gives the same bytes on the same machine; refuses when an input or the weights have changed.
    """
    settings, recipe = settings_of_recipe(image)
    out = out or beside(image, "_replay.png")
    output_paths(out, 1, settings.input_files.values())
    models = load_models(settings)
    card = card_of(settings, models)
    check_unchanged(image, recipe, make_recipe(settings, models, sampling_of(settings, card), card.pair))
    result = compose(settings, models, progress=sys.stderr.isatty())
    save(with_placement(result, recipe.get("placement")), recipe["sample"], out)
    logger.info("image: %s\nreport:  %s", *result_paths(out))


@dataclass(frozen=True, kw_only=True)
class DreamBoothSettings:
    """The DreamBooth test set: every object in every background."""

    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with --object-masks")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME_N.jpg with NAME_N_mask.jpg")
    object_masks: Path | None = setting(
        None, help="masks CONCEPT.jpg of the objects; then masks of backgrounds are black where to paint"
    )
    out: Path = setting(Path("outputs/dreambooth"), help="folder of the results, CONCEPT/N.png each")
    mode: str = setting(
        "replace", choices=("replace", "place", "inpaint", "id-transfer"), help="as in the image verb"
    )
    model: Path | None = setting(None, help="compositor folder, as in the image verb")
    depth_model: Path | None = setting(None, help="depth network folder, as in the image verb")
    seed: int = setting(0, low=0, help="every pair has a seed of its own, made of this and its name")
    shard: str = setting("0/1", help="i/n: this machine makes every n-th composite from the i-th")
    defaults: Path | None = setting(DEFAULTS, help="YAML file of all other settings; none: the built-in ones")

    def __post_init__(self) -> None:
        check_settings(self)
        shard_of(self.shard)


def batch(
    jobs: Annotated[
        Path,
        typer.Argument(
            help="JSONL: one job a line, the setting names of the image verb and a name", metavar="JOBS"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="folder of the results, NAME.png and NAME.json each", metavar="PATH")
    ] = Path("outputs/batch"),
    shard: Annotated[
        str, typer.Option(help="i/n: this machine makes every n-th composite from the i-th", metavar="I/N")
    ] = "0/1",
    defaults: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings below those of the jobs", metavar="FILE"),
    ] = DEFAULTS,
    root: Annotated[
        Path, typer.Option(help="folder that relative paths in the jobs start from", metavar="FOLDER")
    ] = Path("."),
) -> None:
    """Make all composites of a job file. Run again to continue; what is done stays.

    All jobs are checked first. A job that fails is recorded and the rest goes on; the exit code is then 1.
    """
    shard_of(shard)
    finish(run_jobs(read_jobs(jobs, defaults, root), out, shard), out)


def run_dreambooth(settings: DreamBoothSettings) -> None:
    """Compose every object of the DreamBooth test set into every background. Run again to continue."""
    found = find_test_set(settings.objects, settings.backgrounds, settings.object_masks)
    given = {name: getattr(settings, name) for name in ("mode", "model", "depth_model")}
    jobs = pairs(found, to_plain(given), settings.defaults, settings.seed)
    finish(run_jobs(jobs, settings.out, settings.shard), settings.out)


def finish(outcome: Outcome, out: Path) -> None:
    """Say how it went; exit code 1 where something failed."""
    logger.info("%s: %d made, %d were there, %d failed", out, outcome.made, outcome.kept, outcome.failed)
    if outcome.failed:
        logger.error("reasons: %s/failed-*.json; the same command tries these again", out)
        raise typer.Exit(1)


def build_app() -> typer.Typer:
    app = new_app("Put objects into images: at a box, at a depth, behind what is nearer.")
    app.command("image")(command(ImageSettings, run_image, Path("configs/inference.yaml")))
    app.command("replay")(replay)
    app.command("batch")(batch)
    app.command("dreambooth")(command(DreamBoothSettings, run_dreambooth))
    return app


if __name__ == "__main__":
    run_module(build_app)
