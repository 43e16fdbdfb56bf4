"""Contact sheets of composites: inputs, box, fused depth, visible mask, model output and result side by side.

python -m compose.contact_sheet outputs/a.png outputs/b.png --out sheet.png     (from the recipes inside)
python -m compose.contact_sheet --cases cases.json --root DATA --out sheet.png  (a list of cases)
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from tqdm.auto import tqdm

from compose import ComposeSettings, compose, load_models
from compose.output import with_placement
from compose.pipeline import Models, Result
from compose.recipe import settings_of_recipe
from compose.settings import DEPTH_MODES, depth_folder, model_folder
from datasets.geometry import box_to_pixels
from ldm.images import write_png
from ldm.settings.cli import run_module, single_app
from ldm.sheet import grid
from llava_bifrost.draw import draw_candidates
from llava_bifrost.language.answer import Candidate, Location

logger = logging.getLogger(__name__)

TITLES = [
    "background and box",
    "object",
    "depth of the background",
    "fused depth",
    "visible, edit region",
    "model",
    "result",
]


def contact_sheet(result: Result) -> np.ndarray:
    """One row per sample, (H, W, 3) uint8."""
    labels = [f"seed {seed}" for seed in result.seeds]
    labels[0] = f"{labels[0]} {said(result)}".strip()
    return grid([row_of(result, index) for index in range(len(result.seeds))], TITLES, labels)


def said(result: Result) -> str:
    """The sentence and what the locator made of it; nothing where a box was given."""
    placement = result.report.get("placement")
    if placement is None:
        return ""
    chosen = placement["candidates"][placement["chosen"]]
    box = ", ".join(f"{value:.2f}" for value in chosen["box"])
    return f'"{placement["instruction"]}" box {box} depth {chosen["depth"]:.2f}'


def row_of(result: Result, index: int = 0) -> list[np.ndarray]:
    """The images of one sample in the order of TITLES."""
    inputs, layers = result.inputs, result.layers
    fused = inputs.background_depth_01.copy()
    x0, y0, x1, y1 = result.pair.crop.box_xyxy
    fused[y0:y1, x0:x1] = layers.depth_01
    return [
        where(result),
        on_white(inputs.reference_u8, inputs.reference_mask),
        gray(inputs.background_depth_01),
        gray(fused),
        regions(layers.visible, layers.edit),
        result.painted_u8[index],
        result.images_u8[index],
    ]


def where(result: Result) -> np.ndarray:
    """The background with the box, or with all places that a locator proposed and the things it knew."""
    placement, background_u8 = result.report.get("placement"), result.inputs.background_u8
    if placement is None:
        return with_box(background_u8, result.report["box"])
    order = [placement["chosen"], *range(len(placement["candidates"]))]
    listed = [placement["candidates"][index] for index in dict.fromkeys(order)]
    return draw_candidates(background_u8, [candidate_of(one) for one in listed])


def candidate_of(plain: dict[str, Any]) -> Candidate:
    """A proposal as a recipe holds it."""
    location = Location(tuple(plain["box"]), plain["depth"], plain["far"], plain["near"])
    return Candidate(location, plain["log_probability"], plain["text"], plain["score"])


def with_box(image_u8: np.ndarray, box01: list[float]) -> np.ndarray:
    """The image with the box drawn in."""
    h, w = image_u8.shape[:2]
    x0, y0, x1, y1 = box_to_pixels(box01, (h, w))
    width = max(1, round(max(h, w) / 150))
    return cv2.rectangle(image_u8.copy(), (x0, y0), (x1 - 1, y1 - 1), (255, 40, 40), width)


def on_white(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The object cut out."""
    return np.where(mask[..., None], image_u8, np.uint8(255))


def gray(depth_01: np.ndarray) -> np.ndarray:
    """Depth as brightness, near = bright."""
    return np.repeat((np.clip(depth_01, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def regions(visible: np.ndarray, edit: np.ndarray) -> np.ndarray:
    """Visible object white, the rest of the edit region gray, what stays black."""
    return np.repeat(np.where(visible, 255, np.where(edit, 110, 0)).astype(np.uint8)[..., None], 3, axis=2)


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The entries of a case list, each with the keys that are always needed."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["cases"]
        for case in listed:
            absent = {"id", "mode", "background", "object", "box_xyxy"} - case.keys()
            if absent:
                raise ValueError(f"case {case.get('id', '?')} lacks {', '.join(sorted(absent))}")
        if not listed:
            raise ValueError("the list is empty")
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f'{path}: expected {{"cases": [{{"id": ..., "mode": ...}}, ...]}}') from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return listed


def settings_of_case(
    case: dict[str, Any], root: Path, model: Path | None = None, depth_model: Path | None = None
) -> ComposeSettings:
    """One entry of a case list (its conventions are in the file itself) as settings."""

    def path(name: str) -> Path | None:
        return root / case[name] if case.get(name) else None

    # Place needs only the box; the other modes repaint a region of the background and have its depth.
    target = None if case["mode"] == "place" else path("target_mask")
    fused = case["mode"] in DEPTH_MODES
    return ComposeSettings(
        background=root / case["background"],
        object=root / case["object"],
        object_mask=path("object_mask"),
        background_depth=path("background_depth"),
        object_depth=path("object_depth"),
        target_mask=target,
        box=tuple(case["box_xyxy"]),
        depth=tuple(case["depth_range"]) if fused and case.get("depth_range") else None,
        mode=case["mode"],
        model=model,
        depth_model=depth_model,
    )


def compose_all(jobs: Sequence[tuple[str, ComposeSettings]]) -> Iterator[tuple[str, Result]]:
    """Every job's name and result; networks stay loaded while they are the same."""
    models: Models | None = None
    for name, settings in tqdm(jobs, desc="composites", disable=not sys.stderr.isatty()):
        wanted = (model_folder(settings), depth_folder(settings.depth_model))
        if models is None or (models.folder, models.depth_folder) != wanted:
            models = load_models(settings)
        try:
            yield name, compose(settings, models, progress=False)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def make(
    out: Annotated[Path, typer.Option(help="PNG to write", metavar="PATH")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="images written by run_inference.py image", metavar="[IMAGE]..."),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(help="JSON list of cases, instead of images", metavar="FILE")
    ] = None,
    root: Annotated[
        Path, typer.Option(help="folder that the paths in the case list start from", metavar="FOLDER")
    ] = Path("."),
    model: Annotated[
        Path | None, typer.Option(help="compositor folder for the cases", metavar="FOLDER")
    ] = None,
    depth_model: Annotated[
        Path | None, typer.Option(help="depth network folder for the cases", metavar="FOLDER")
    ] = None,
) -> None:
    """Compose and draw one row per image or case."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must name a .png file, got {out}")
    if bool(images) == (cases is not None):
        raise ValueError("give either images made by run_inference.py, or --cases FILE")
    if cases is not None:
        jobs = [(case["id"], settings_of_case(case, root, model, depth_model)) for case in read_cases(cases)]
        placements: list[dict[str, Any] | None] = [None] * len(jobs)
    else:
        recipes = [settings_of_recipe(image) for image in images or []]
        jobs = [(image.stem, one[0]) for image, one in zip(images or [], recipes, strict=True)]
        placements = [recipe.get("placement") for _, recipe in recipes]
    rows, labels = [], []
    for (name, result), placement in zip(compose_all(jobs), placements, strict=True):
        result = with_placement(result, placement)
        rows += [row_of(result, index) for index in range(len(result.seeds))]
        name = f"{name} {said(result)}".strip()
        labels += [name if index == 0 else f"seed {seed}" for index, seed in enumerate(result.seeds)]
        changed = sum(one["changed_outside"] for one in result.report["drift"])
        visible = 100 * result.report["visible_fraction"]
        logger.info("%s: %.0f %% visible, %d pixels changed outside", name, visible, changed)
    write_png(out, grid(rows, TITLES, labels))
    logger.info("sheet: %s", out)


build_app = single_app(make)

if __name__ == "__main__":
    run_module(build_app)
