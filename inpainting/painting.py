"""An image, its masks and prompts, written where missing, become a painted image with recipe and sheet."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inpainting.dream import DreamSettings
from inpainting.models.image_to_text.settings import Decoding
from inpainting.models.image_to_text.writer import GREEDY, PromptWriter, find_files
from inpainting.models.text_to_image import pipeline
from inpainting.models.text_to_image.config import DEFAULTS, PaintOptions
from inpainting.models.text_to_image.load import Inpainter, load_inpainter, read_inpainter_config
from inpainting.paint import FULL_MODEL, TINY_MODEL, PaintSettings
from inpainting.prompts import colors_of_masks, paint_masks, palette, remove_overlaps, rgb_of_color
from ldm import result as results
from ldm.decode import LoadedImage
from ldm.denoise import Monitor
from ldm.files import file_sha256, located
from ldm.images import encode_png, read_image, read_mask
from ldm.latents import scheduler_class
from ldm.registry.models import resolve_model_path, warn_of_small
from ldm.settings.config import to_plain
from ldm.sheet import CELL_GAP, FRAME_COLOR, INK, PAPER, grid, wrap_text

log = logging.getLogger(__name__)

TINT = 0.65  # opacity of masks in the sheet; chosen
FONT_SIZE, LINE, SWATCH = 18, 26, 16  # pixels of the prompts below the sheet


def run_paint(settings: PaintSettings) -> dict[str, Any]:
    """Fill the masks of an image, each with its own prompt.

    Writes an image with its recipe, a JSON report beside it, and a sheet of before, regions and after.
    """
    results.output_paths(settings.out, settings.num_samples, (settings.image, *settings.masks))
    if len(settings.masks) != len(settings.prompts) or not settings.masks:  # before a file is read
        pipeline.pair_masks(settings.masks, settings.prompts)  # type: ignore[arg-type]
    image = read_image(settings.image)
    masks = [read_mask(path, size=image.size) for path in settings.masks]
    regions = pipeline.pair_masks(masks, settings.prompts, settings.negatives)
    result = paint_regions(settings, image, regions)
    sheet_u8 = None
    if settings.sheet:
        colors, masks = palette(len(masks)), [region.mask for region in result.regions]
        tinted_u8 = paint_masks(image.rgb_u8, masks, colors, [TINT] * len(masks))
        cells = [image.rgb_u8, tinted_u8, *(sample.rgb_u8 for sample in result.images)]
        titles = ["image", "regions", *(f"seed {seed}" for seed in result.seeds)]
        named = zip(colors, result.regions, strict=True)
        label = "; ".join(f"{color}: {region.prompt}" for color, region in named)
        sheet_u8 = grid([cells], titles, [label])
    return save_painting(settings, result, sheet_u8)


def save_painting(
    settings: PaintSettings, result: pipeline.PaintResult, sheet_u8: np.ndarray | None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write each sample with its recipe and report, and the sheet. more: what else decided the pixels."""
    paths = results.sample_paths(settings.out, settings.num_samples)
    hashes = {"image": file_sha256(settings.image), "masks": [file_sha256(path) for path in settings.masks]}
    plain = to_plain(settings)
    for name in ("out", "sheet", "overwrite"):  # they do not decide the image
        del plain[name]
    recipe = {**result.recipe, "settings": plain, "inputs": hashes, **(more or {})}
    for index, path in enumerate(paths):
        replace(result, recipe=recipe).save(index, path, overwrite=settings.overwrite)
    sheet = None
    if sheet_u8 is not None:
        sheet = results.beside(settings.out, "_sheet.png")
        results.write_result({sheet: encode_png(sheet_u8)}, settings.overwrite)
    results.warn_if_alike(result.images_u8, result.edit_mask, result.recipe["options"]["steps"])
    summary = f"{len(result.regions)} regions, {result.changed_outside} pixels changed outside the masks"
    return results.log_result(paths, result.report, summary, sheet)


def painter_folder(settings: PaintSettings) -> Path:
    """The model that paints; ValueError if its folder is not complete."""
    full = resolve_model_path(FULL_MODEL)
    folder = settings.model or (full if full.is_dir() else located(TINY_MODEL))
    read_inpainter_config(folder)
    return folder


PAINTER_KEYS = ("model", "lora", "lora_scale", "device", "dtype")  # settings that decide what this loads


def load_painter(settings: PaintSettings) -> Inpainter:
    where = {"device": settings.device, "dtype": settings.dtype}
    return load_inpainter(painter_folder(settings), settings.lora, lora_scale=settings.lora_scale, **where)


def load_writer(settings: DreamSettings) -> PromptWriter:
    """The model that writes prompts, as the settings name it; ValueError where it does not suit them."""
    folder = settings.prompter
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of a prompt writer (--prompter)")
    files = find_files(folder, settings.adapter)
    warn_of_small(painter_folder(settings), files.model if files.adapter is None else files.adapter)
    asked = files.config
    if asked.question == "discover":
        known = completed(settings.prompts, len(settings.masks))
        colors_of_masks(asked, known)  # before weights are read
    return PromptWriter.load(folder, settings.adapter, settings.device, settings.dtype, settings.precision)


def paint_regions(
    settings: PaintSettings, image: LoadedImage, regions: Sequence[pipeline.RegionPrompt],
    pipe: Inpainter | None = None, monitor: Monitor | None = None,
) -> pipeline.PaintResult:  # fmt: skip
    """Paint the regions as the settings say. pipe: their model, if loaded; monitor: without it a bar."""
    if settings.scheduler is not None:
        scheduler_class(settings.scheduler)
    seeds = range(settings.seed, settings.seed + settings.num_samples)
    job = pipeline.PaintJob(image.rgb_u8, regions, seeds, image)
    monitor = monitor or Monitor(progress=sys.stderr.isatty())
    return pipeline.paint_all([job], pipe or load_painter(settings), settings.options, monitor)[0]


@dataclass(frozen=True)
class Prompts:
    """Per mask: its prompt, whether it was written here, and the colour in which the writer saw it."""

    texts: list[str]
    written: list[bool]
    colors: list[str]

    def rows(self) -> list[dict[str, Any]]:
        parts = zip(self.colors, self.texts, self.written, strict=True)
        return [{"color": color, "prompt": text, "written": new} for color, text, new in parts]


@dataclass(frozen=True, eq=False)
class Dream:
    prompts: Prompts
    result: pipeline.PaintResult

    @property
    def image_u8(self) -> np.ndarray:
        """The first sample, (h, w, 3)."""
        return self.result.image_u8

    def sheet(self, image_u8: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8: the image, its masks as the writer saw them, the results; below, the prompts."""
        seeds = self.result.seeds
        titles = ["after"] if len(seeds) == 1 else [f"after, seed {seed}" for seed in seeds]
        seen = paint_masks(image_u8, [region.mask for region in self.result.regions], self.prompts.colors)
        after = [image.rgb_u8 for image in self.result.images]
        images = grid([[image_u8, seen, *after]], ["before", "masks", *titles])
        font, width = ImageFont.load_default(size=FONT_SIZE), images.shape[1]
        left = 2 * CELL_GAP + SWATCH
        lines: list[tuple[str, str]] = []
        for row in self.prompts.rows():
            text = f"{row['prompt'] or '(nothing)'}   ({'written' if row['written'] else 'given'})"
            broken = wrap_text(text, font, width - left - CELL_GAP, cut=True).split("\n")
            lines += zip(broken, [row["color"], *[""] * (len(broken) - 1)], strict=True)
        legend = Image.new("RGB", (width, len(lines) * LINE + 2 * CELL_GAP), PAPER)
        pen = ImageDraw.Draw(legend)
        for number, (line, color) in enumerate(lines):
            y = CELL_GAP + number * LINE
            if color:
                swatch = (CELL_GAP, y, CELL_GAP + SWATCH, y + SWATCH)
                pen.rectangle(swatch, fill=rgb_of_color(color), outline=FRAME_COLOR)
            pen.text((left, y + SWATCH // 2), line, fill=INK, font=font, anchor="lm")
        return np.vstack([images, np.array(legend)])


def dream(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    writer: PromptWriter | None,
    pipe: Inpainter,
    prompts: Sequence[str] = (),
    seed: int = 0,
    options: PaintOptions = DEFAULTS,
) -> Dream:
    """Write the missing prompts of the masks (h, w) bool of an image (h, w, 3) uint8, then paint all masks.

    writer: None when no prompt is missing. prompts: known ones in the order of the masks, "" or missing where
    one is to be written. Image and masks may be paths or PIL images. `write_missing` and `paint` do the same
    in two steps and have more options.
    """
    image_u8 = image_u8 if isinstance(image_u8, np.ndarray) else read_image(image_u8).rgb_u8
    masks = [mask if isinstance(mask, np.ndarray) else read_mask(mask) for mask in masks]
    written = write_missing(image_u8, masks, prompts, writer)
    regions = pipeline.pair_masks(masks, written.texts)
    return Dream(written, pipeline.paint(image_u8, regions, pipe, seed, options))


def write_missing(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    prompts: Sequence[str],
    writer: PromptWriter | None,
    decoding: Decoding = GREEDY,
) -> Prompts:
    """The prompts of the masks (h, w) bool of an image (h, w, 3) uint8; given ones stay as they are."""
    known = completed(prompts, len(masks))
    missing = [not text for text in known]
    if not any(missing):
        return Prompts(known, missing, palette(len(known)))
    if writer is None:
        raise ValueError(f"{sum(missing)} masks have no prompt, and no prompt writer is given")
    order = sorted(range(len(masks)), key=lambda number: -np.count_nonzero(masks[number]))  # of painting
    for number, mask in zip(order, remove_overlaps([masks[number] for number in order]), strict=True):
        if not mask.any():
            log.warning("mask %d lies under smaller masks: the writer does not see its colour", number + 1)
    texts = writer.write([image_u8], [masks], decoding, given=[known])[0]
    for number, text in enumerate(texts, 1):
        if not text:
            log.warning("mask %d: the answer holds no prompt; it is painted without one", number)
    together = writer.config.question == "discover"
    return Prompts(texts, missing, colors_of_masks(writer.config, known) if together else palette(len(known)))


def completed(prompts: Sequence[str], masks: int) -> list[str]:
    """One prompt per mask, "" where none is given; ValueError without masks, and for too many prompts."""
    if not masks:
        raise ValueError("nothing to paint: no mask is given (--masks)")
    if len(prompts) > masks:
        raise ValueError(f"more prompts than masks: {len(prompts)} prompts, {masks} masks (--prompts)")
    return [*(text.strip() for text in prompts), *[""] * (masks - len(prompts))]


def facts_of_writer(writer: PromptWriter) -> dict[str, Any]:
    """What a recipe says of the model that wrote prompts."""
    return {"card": to_plain(writer.config), "weights": writer.weights(), "folder": writer.mllm.folder}


def run_dream(settings: DreamSettings) -> dict[str, Any]:
    """Write a prompt for every mask that has none, and fill the masks, each with its own prompt.

    Writes an image that carries its recipe, a JSON report beside it, and a sheet of before, masks and after
    with the prompts.
    """
    results.output_paths(settings.out, settings.num_samples, (settings.image, *settings.masks))
    timer = results.StageTimer()
    known = completed(settings.prompts, len(settings.masks))
    image = read_image(settings.image)
    masks = [read_mask(path, size=image.size) for path in settings.masks]
    pipeline.pair_masks(masks, known, settings.negatives)
    painter_folder(settings)
    with timer.stage("write"):
        writer, facts = None, {}
        if not all(known):
            writer = load_writer(settings)
            facts = facts_of_writer(writer)
        prompts = write_missing(image.rgb_u8, masks, known, writer, settings.decoding)
        if writer is not None:
            facts["prompts"] = prompts.rows()
            for row in prompts.rows():
                log.info("%s (%s): %s", row["color"], "written" if row["written"] else "given", row["prompt"])
        del writer  # frees its memory for the painter
    result = paint_regions(settings, image, pipeline.pair_masks(masks, prompts.texts, settings.negatives))
    report = {**result.report, "prompts": prompts.rows()}
    report["seconds"] = {**report["seconds"], "write": timer.report()["write"]}
    result = replace(result, report=report)
    sheet_u8 = Dream(prompts, result).sheet(image.rgb_u8) if settings.sheet else None
    return save_painting(settings, result, sheet_u8, {"command": "dream", "prompter": facts})
