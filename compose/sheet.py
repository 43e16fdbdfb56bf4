"""The rows of a contact sheet: inputs, box, fused depth, visible mask, model output and result."""

import logging
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

from compose.contact_sheet import ContactSheetSettings
from compose.models import Models, load_models
from compose.pipeline import Result, compose
from compose.recipe import settings_of_recipe
from compose.settings import DEPTH_MODES, INPUT_FILES, ComposeSettings
from datasets.geometry import box_to_pixels
from datasets.relations import Place
from ldm.files import named_failure, read_json
from ldm.images import encode_png
from ldm.result import beside, write_result
from ldm.sheet import as_levels, grid
from llava_bifrost.language.answer import Candidate, draw_candidates

logger = logging.getLogger(__name__)

RED = (255, 40, 40)
TITLES = (
    "background and box", "object", "depth of the background", "fused depth", "visible, edit region", "model",
    "result")  # fmt: skip


def save_sheet(result: Result, out: Path, overwrite: bool) -> Path:
    """Write NAME_sheet.png beside the composite `out`; overwrite: as in `ldm.result.write_result`."""
    rows, labels = sheet_rows(result)
    path = beside(out, "_sheet.png")
    write_result({path: encode_png(grid(rows, TITLES, labels))}, overwrite)
    return path


def sheet_rows(result: Result, name: str | None = None) -> tuple[list[list[np.ndarray]], list[str]]:
    """Images in the order of TITLES and a label for every sample.

    Visible object white, rest of the edit region gray. The first label has the name, without one the seed,
    and where a sentence was given what the locator made of it.
    """
    inputs, layers, window = result.geometry.inputs, result.geometry.native_layers, result.geometry.window
    cut, mask = on_white(inputs.reference_u8, inputs.reference_mask), inputs.reference_mask.astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    visible, edit = (window.embed(mask)[result.geometry.crop.part] for mask in (layers.visible, layers.edit))
    depth_u8, white, gray, black = as_levels(inputs.background_depth_01), *np.array([255, 110, 0], np.uint8)
    fused_u8 = depth_u8.copy()
    fused_u8[window.part] = as_levels(layers.depth_01)
    outlined_u8 = cv2.drawContours(cut, outlines, -1, RED, max(1, max(mask.shape) // 150))
    regions_u8 = np.where(visible, white, np.where(edit, gray, black))
    shared = [marked_background(result), outlined_u8, depth_u8, fused_u8, regions_u8]
    samples = zip(result.painted_u8, result.images, strict=True)
    rows = [[*shared, painted_u8, image.rgb_u8] for painted_u8, image in samples]
    labels = [f"seed {seed}" for seed in result.seeds]
    labels[0] = name or labels[0]
    if (placement := result.report.get("placement")) is not None:
        chosen = placement["candidates"][placement["chosen"]]
        box = ", ".join(f"{value:.2f}" for value in chosen["box"])
        labels[0] += f' "{placement["instruction"]}" box {box} depth {chosen["depth"]:.2f}'
    return rows, labels


def marked_background(result: Result) -> np.ndarray:
    """The background with the box, or with all places that a locator proposed, the chosen one first."""
    placement, background_u8 = result.report.get("placement"), result.background.rgb_u8
    if placement is None:
        h, w = background_u8.shape[:2]
        x0, y0, x1, y1 = box_to_pixels(result.report["box"], (h, w))
        width = max(1, round(max(h, w) / 150))
        return cv2.rectangle(background_u8.copy(), (x0, y0), (x1 - 1, y1 - 1), RED, width)
    order = [placement["chosen"], *range(len(placement["candidates"]))]
    candidates = []
    for plain in (placement["candidates"][index] for index in dict.fromkeys(order)):
        location = Place.of(tuple(plain["box"]), plain["depth"], plain["far"], plain["near"])
        candidates.append(Candidate(location, plain["log_probability"], plain["text"], plain["score"]))
    return draw_candidates(background_u8, candidates)


def on_white(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], image_u8, np.uint8(255))


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The entries of a case list, each with the keys that are always needed."""
    body = read_json(path, object)
    cases = body.get("cases") if isinstance(body, dict) else None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ValueError(f'{path}: expected {{"cases": [{{"id": ..., "mode": ...}}, ...]}}')
    for case in cases:
        if absent := sorted({"id", "mode", "background", "object", "box_xyxy"} - case.keys()):
            raise ValueError(f"{path}: case {case.get('id', '?')} lacks {', '.join(absent)}")
    if not cases:
        raise ValueError(f"{path}: the list is empty")
    return cases


def settings_of_case(
    case: dict[str, Any], root: Path, model: Path | None = None, depth_model: Path | None = None
) -> ComposeSettings:
    """One entry of a case list (its conventions are in the file itself) as settings."""
    # Place needs only the box; the other modes repaint a region of the background and have its depth.
    mode, depth = case["mode"], case.get("depth_range")
    unused = {"target_mask"} if mode == "place" else set()
    files: dict[str, Any] = {
        name: root / case[name] for name in INPUT_FILES if case.get(name) and name not in unused
    }
    files["depth"] = tuple(depth) if mode in DEPTH_MODES and depth else None
    box = tuple(case["box_xyxy"])
    return ComposeSettings(**files, box=box, mode=mode, model=model, depth_model=depth_model)


def make_sheet(settings: ContactSheetSettings) -> None:
    """Compose and draw one row per image or case."""
    models: Models | None = None
    rows, labels, folders = [], [], (settings.root, settings.model, settings.depth_model)
    jobs = [(image.stem, *settings_of_recipe(image)) for image in settings.images]
    if settings.cases is not None:
        jobs = [(case["id"], settings_of_case(case, *folders), {}) for case in read_cases(settings.cases)]
    for name, job, recipe in tqdm(jobs, desc="composites", disable=not sys.stderr.isatty()):
        models = load_models(job, models)
        with named_failure(name, ValueError):
            result = compose(job, models, progress=False).with_placement(recipe.get("placement"))
        images, titles = sheet_rows(result, name)
        rows += images
        labels += titles
        visible, outside = 100 * result.report["visible_fraction"], result.changed_outside
        logger.info("%s: %.0f %% visible, %d pixels changed outside", titles[0], visible, outside)
    write_result({settings.out: encode_png(grid(rows, TITLES, labels))}, settings.overwrite)
    logger.info("sheet: %s", settings.out)
