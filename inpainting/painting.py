"""An image, its masks and prompts become a painted image with recipe, report and sheet."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.text_to_image.canvas import RegionPrompt, pair_masks
from inpainting.models.text_to_image.load import load_inpainter, read_inpainter_config
from inpainting.models.text_to_image.pipeline import PaintResult, paint
from inpainting.paint import FULL_MODEL, TINY_MODEL, PaintSettings
from inpainting.prompts import paint_masks, palette
from ldm.decode import LoadedImage
from ldm.device import pick_device, pick_dtype
from ldm.files import file_sha256, located
from ldm.images import encode_png, read_image, read_mask
from ldm.latents import scheduler_class
from ldm.registry.models import resolve_model_path
from ldm.result import (
    beside,
    log_result,
    output_paths,
    sample_paths,
    save_result,
    warn_if_alike,
    write_result,
)
from ldm.settings.config import to_plain
from ldm.sheet import grid

TINT = 0.65  # opacity of masks in the sheet; chosen


def run_paint(settings: PaintSettings) -> dict[str, Any]:
    """Fill the masks of an image, each with its own prompt.

    Writes an image with its recipe, a JSON report beside it, and a sheet of before, regions and after.
    """
    output_paths(settings.out, settings.num_samples, (settings.image, *settings.masks))
    if len(settings.masks) != len(settings.prompts) or not settings.masks:  # before a file is read
        pair_masks(settings.masks, settings.prompts)  # type: ignore[arg-type]
    image = read_image(settings.image)
    masks = [read_mask(path, size=image.size) for path in settings.masks]
    regions = pair_masks(masks, settings.prompts, settings.negatives)
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
    settings: PaintSettings,
    result: PaintResult,
    sheet_u8: np.ndarray | None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write each sample with its recipe, its report beside it, and the sheet; log where they are.

    more:    what else decided the pixels
    returns: the report of all samples, with `files`
    """
    paths = sample_paths(settings.out, settings.num_samples)
    hashes = {"image": file_sha256(settings.image), "masks": [file_sha256(path) for path in settings.masks]}
    plain = to_plain(settings)
    del plain["overwrite"]  # does not decide the image
    recipe = {**result.recipe, "settings": plain, "inputs": hashes, **(more or {})}
    for index, (path, seed) in enumerate(zip(paths, result.seeds, strict=True)):
        report = {**result.report, "drift": result.report["drift"][index], "seed": seed}
        sample_recipe = {**recipe, "sample": index, "seed": seed}
        save_result(path, result.images[index], sample_recipe, report, settings.overwrite)
    sheet = None
    if sheet_u8 is not None:
        sheet = beside(settings.out, "_sheet.png")
        write_result({sheet: encode_png(sheet_u8)}, settings.overwrite)
    warn_if_alike(result.images_u8, result.edit_mask, result.recipe["options"]["steps"])
    changed = sum(drift["changed_outside"] for drift in result.report["drift"])
    summary = f"{len(result.regions)} regions, {changed} pixels changed outside the masks"
    return log_result(paths, result.report, summary, sheet)


def painter_folder(settings: PaintSettings) -> Path:
    """The model that paints; ValueError if its folder is not complete."""
    full = resolve_model_path(FULL_MODEL)
    folder = settings.model or (full if full.is_dir() else located(TINY_MODEL))
    read_inpainter_config(folder)
    return folder


def paint_regions(
    settings: PaintSettings, image: LoadedImage, regions: Sequence[RegionPrompt]
) -> PaintResult:
    """Load the model of the settings and paint the regions as they say."""
    if settings.scheduler is not None:
        scheduler_class(settings.scheduler)
    device = pick_device(settings.device)
    pipe = load_inpainter(
        painter_folder(settings),
        settings.lora,
        lora_scale=settings.lora_scale,
        device=device,
        dtype=pick_dtype(settings.dtype, device),
    )
    progress, samples = sys.stderr.isatty(), settings.num_samples
    return paint(image, regions, pipe, settings.seed, settings.options, samples=samples, progress=progress)
