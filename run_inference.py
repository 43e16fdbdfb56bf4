"""Compose pictures from the command line.

    python run_inference.py image --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
    python run_inference.py replay out.png

Defaults come from configs/inference.yaml; flags override them.  `--help` after a verb lists everything.
"""

from __future__ import annotations

import json as json_format
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from compose import ComposeSettings, Models, Result, compose, load_models
from ldm.config import Layer, merge_layers, setting
from ldm.denoise import Step
from ldm.images import from_pm1, write_png
from ldm.options import command, new_app, run_app
from ldm.result import file_sha256, hash_folder, library_versions, read_recipe, result_paths, save_result
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
    save_steps: int = setting(0, low=0, help="write a preview every so many steps into NAME_steps/; 0 = none")
    json: bool = setting(False, help="print the report as JSON")


def run_image(settings: ImageSettings) -> None:
    """Put an object into a background at a box and a depth."""
    paths = output_paths(settings.out, settings.num_samples)
    result = run(settings)
    for index, path in enumerate(paths):
        save(result, index, path)
    if settings.sheet:
        write_png(beside(settings.out, "_sheet.png"), contact_sheet(result))
    tell(settings, result, paths)


def run(settings: ImageSettings) -> Result:
    """Load, compose, and write previews on the way when asked to."""
    models = load_models(settings)
    previews = Previews(settings, models) if settings.save_steps else None
    return compose(settings, models, on_step=previews, progress=sys.stderr.isatty())


class Previews:
    """Decodes the first sample every few steps into NAME_steps/step_000.png."""

    def __init__(self, settings: ImageSettings, models: Models) -> None:
        self.every, self.models = settings.save_steps, models
        self.folder = beside(settings.out, "_steps")

    def __call__(self, step: Step) -> None:
        if (step.index + 1) % self.every and step.index + 1 < step.total:
            return
        space = self.models.compositor.latent_space
        latents = step.latents[:1].to(space.mean.device, next(space.parameters()).dtype)
        write_png(
            self.folder / f"step_{step.index + 1:03d}.png", from_pm1(space.decode(latents)[0].float().cpu())
        )


def beside(out: Path, ending: str) -> Path:
    """outputs/a.png, "_sheet.png" -> outputs/a_sheet.png"""
    return out.with_name(out.stem + ending)


def output_paths(out: Path, count: int) -> list[Path]:
    """One PNG per sample; refuses, before any work, a place that cannot be written."""
    paths = [out] if count == 1 else [beside(out, f"_{index}.png") for index in range(count)]
    for path in paths:
        for target in result_paths(path):
            if target.is_dir():
                raise ValueError(f"{target}: is a folder; --out must name a .png file")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{out}: cannot be written, {folder} is not a writable folder")
    return paths


def save(result: Result, index: int, path: Path) -> None:
    """One sample: the PNG with its recipe, the JSON report beside it."""
    recipe = {**result.recipe, "sample": index, "seed": result.seeds[index]}
    report = {**result.report, "seed": result.seeds[index], "drift": result.report["drift"][index]}
    save_result(path, result.images_u8[index], recipe, report, result.alpha_u8)


def tell(settings: ImageSettings, result: Result, paths: list[Path]) -> None:
    """Say where everything is, for people or as JSON."""
    if settings.json:
        files = [path.as_posix() for path in paths]
        sys.stdout.write(json_format.dumps({**result.report, "files": files}, sort_keys=True) + "\n")
        return
    for path in paths:
        logger.info("picture: %s\nreport:  %s", *result_paths(path))
    if settings.sheet:
        logger.info("sheet:   %s", beside(settings.out, "_sheet.png"))
    changed = sum(one["changed_outside"] for one in result.report["drift"])
    logger.info(
        "visible %.0f %%, pixels changed outside the mask: %d, %.1f s",
        100 * result.report["visible_fraction"],
        changed,
        result.report["seconds"]["total"],
    )


def replay(
    picture: Annotated[Path, typer.Argument(help="PNG written by the image verb")],
    out: Annotated[Path | None, typer.Option(help="where to write; default: NAME_replay.png")] = None,
) -> None:
    """Paint a picture again from the recipe inside it: the same bytes on the same machine."""
    settings, recipe = settings_of_recipe(picture)
    out = out or beside(picture, "_replay.png")
    output_paths(out, 1)
    check_unchanged(picture, recipe, settings)
    save(compose(settings, load_models(settings), progress=sys.stderr.isatty()), recipe["sample"], out)
    logger.info("picture: %s", out)


def settings_of_recipe(picture: Path) -> tuple[ComposeSettings, dict]:
    """The settings that made a picture, and its whole recipe."""
    recipe = read_recipe(picture)
    if recipe.get("command") != "image":
        raise ValueError(f"{picture}: its recipe was not written by the image verb")
    return merge_layers(ComposeSettings, [Layer(recipe["settings"], f"{picture}: recipe: ")]), recipe


def check_unchanged(picture: Path, recipe: dict, settings: ComposeSettings) -> None:
    """Inputs and weights must be those of the recipe; other library versions only get a warning."""
    for name, digest in recipe["inputs"].items():
        if file_sha256(getattr(settings, name)) != digest:
            raise ValueError(f"{picture}: {getattr(settings, name)} ({name}) has changed since it was made")
    folder = Path(recipe["model"]["folder"])
    if hash_folder(folder) != recipe["model"]["weights"]:
        raise ValueError(f"{picture}: the weights in {folder} are not those it was made with")
    if library_versions() != recipe["versions"]:
        logger.warning("library versions differ from the recipe's; pixels may differ slightly")


def build_app() -> typer.Typer:
    app = new_app("Put objects into pictures: at a box, at a depth, behind what is nearer.")
    app.command("image")(command(ImageSettings, run_image, Path("configs/inference.yaml")))
    app.command("replay")(replay)
    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(run_app(build_app, sys.argv[1:]))
