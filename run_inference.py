"""Compose pictures from the command line.

    python run_inference.py image --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
    python run_inference.py image --background room.png --object dog.png \\
        --instruction "Place the dog behind the sofa"
    python run_inference.py replay out.png

Defaults come from configs/inference.yaml; flags override them.  `--help` after a verb lists everything.
"""

from __future__ import annotations

import json as json_format
import logging
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from compose import ComposeSettings, Models, Result, compose, load_models, sampling_of
from compose_recipe import check_unchanged, make_recipe, settings_of_recipe
from ldm.config import setting
from ldm.denoise import Step
from ldm.images import from_pm1, write_png
from ldm.logs import start_logging
from ldm.options import command, new_app, run_app
from ldm.result import result_paths, save_result
from scripts.composite_sheet import contact_sheet

logger = logging.getLogger(__name__)


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
    """Put an object into a background at a box and a depth.

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


def beside(out: Path, ending: str) -> Path:
    """outputs/a.png, "_sheet.png" -> outputs/a_sheet.png"""
    return out.with_name(out.stem + ending)


def output_paths(out: Path, count: int, inputs: Collection[Path] = ()) -> list[Path]:
    """One PNG per sample; refuses, before any work, a place that cannot be written or holds an input."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; it must name a .png file")
    paths = [out] if count == 1 else [beside(out, f"_{index}.png") for index in range(count)]
    targets = [beside(out, "_sheet.png"), *(target for path in paths for target in result_paths(path))]
    for target in targets:
        if target.is_dir():
            raise ValueError(f"--out {out}: {target} is a folder")
        if target.resolve() in {source.resolve() for source in inputs}:
            raise ValueError(f"--out {out}: {target} is one of the inputs and would be overwritten")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out} cannot be written: {folder} is not a writable folder")
    return paths


def save(result: Result, index: int, path: Path) -> None:
    """One sample: the PNG with its recipe, the JSON report beside it."""
    recipe = {**result.recipe, "sample": index, "seed": result.seeds[index]}
    report = {**result.report, "seed": result.seeds[index], "drift": result.report["drift"][index]}
    save_result(path, result.images_u8[index], recipe, report, result.alpha_u8, result.icc_profile)


def with_placement(result: Result, placement: dict[str, Any] | None) -> Result:
    """A result that tells, like the one it repeats, how a sentence was understood."""
    if placement is None:
        return result
    report = {**result.report, "placement": placement}
    return replace(result, recipe={**result.recipe, "placement": placement}, report=report)


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
        logger.info("picture: %s\nreport:  %s", *result_paths(path))
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
    picture: Annotated[Path, typer.Argument(help="PNG written by the image verb", metavar="PICTURE")],
    out: Annotated[
        Path | None,
        typer.Option(help="PNG to write [default: NAME_replay.png]", metavar="PATH", show_default=False),
    ] = None,
) -> None:
    """Paint a picture again from the recipe inside it.

    Gives the same bytes on the same machine; refuses when an input or the weights have changed.
    """
    settings, recipe = settings_of_recipe(picture)
    out = out or beside(picture, "_replay.png")
    output_paths(out, 1, settings.input_files.values())
    models = load_models(settings)
    check_unchanged(picture, recipe, make_recipe(settings, models, sampling_of(settings, models.card)))
    result = compose(settings, models, progress=sys.stderr.isatty())
    save(with_placement(result, recipe.get("placement")), recipe["sample"], out)
    logger.info("picture: %s\nreport:  %s", *result_paths(out))


def build_app() -> typer.Typer:
    app = new_app("Put objects into pictures: at a box, at a depth, behind what is nearer.")
    app.command("image")(command(ImageSettings, run_image, Path("configs/inference.yaml")))
    app.command("replay")(replay)
    return app


if __name__ == "__main__":
    start_logging()
    sys.exit(run_app(build_app, sys.argv[1:]))
