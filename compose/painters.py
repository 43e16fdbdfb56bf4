"""Who paints the crop of a composite: the compositor, the relit cut-out alone, or a pipeline of diffusers.

The geometry is the same for all: none touches a pixel outside the edit region, or of something nearer.
Legend: H W pixels of the background, h w pixels of the window in which anything may change.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cldm.config import Sampling
from cldm.pipeline import CompositorPipeline, Weights
from compose.models import Models, load_once
from compose.settings import AUTO, BIFROST, COMPILE, PASTE, TINY_MODEL, ComposeSettings
from compose.shadow import Shadow
from compose.sources import Sources
from datasets.augment import square_view
from datasets.masks import dilate
from datasets.pairs import Geometry, Pair
from datasets.pasteback import WHOLE, Stitched, stitch
from datasets.perspective import continue_planes
from datasets.planes import in_front, planes_behind
from ldm.decode import LoadedImage, Overlay
from ldm.denoise import AT_ONCE, Cancelled, Monitor
from ldm.device import pick_dtype
from ldm.experts.erase import EXEMPLAR, Eraser
from ldm.experts.painter import FolderPainter
from ldm.files import located
from ldm.result import StageTimer, warn_if_alike
from llava_bifrost.placement.ground import HORIZON_D, fit_ground

logger = logging.getLogger(__name__)

LINEAR = (np.arange(256) / 255) ** 2.2  # light of a channel's values
NORM = 6  # of the mean that estimates the light (Finlayson and Trezzi 2004, shades of gray)
SMALL = 128 * 128  # pixels; measured at 96 x 96: a step of 8 jobs takes a third less than 8 of one
PART, MOST = 0.5, 1.25  # of the difference in light that is made up for, and the largest factor (chosen)


@dataclass(frozen=True, eq=False)
class Work:
    """All that a painter needs to know of a composite."""

    geometry: Geometry
    pair: Pair
    sources: Sources
    settings: ComposeSettings
    models: Models
    timer: StageTimer
    sampling: Sampling
    recipe: dict[str, Any]
    decided: dict[str, Any]  # for the report
    shadow: Shadow | None = None  # in which the geometry's layers lie; the sources do not

    @property
    def group(self) -> Any:
        """What works have in common that the compositor paints in one batch; None: it paints this alone."""
        alone = self.settings.painter != BIFROST or self.settings.num_samples > 1 or self.settings.offload
        if alone or self.sources.background.rgb_u8.size > 3 * WHOLE:  # for memory
            return None
        given, size = (self.settings.compat, self.settings.vae), self.geometry.options.size
        return id(self.models), self.sampling, self.weights, given, size

    @property
    def weights(self) -> Weights:
        return Weights(self.settings.detail_weight, self.settings.depth_weight)

    @property
    def under(self) -> Overlay | None:
        """What lies over the background before the object does."""
        return None if self.shadow is None else self.shadow.paint

    @property
    def seeds(self) -> list[int]:
        return [self.settings.seed + index for index in range(self.settings.num_samples)]


@dataclass(frozen=True, eq=False)
class PaintedCrops:
    """What a painter made: samples laid over the background, and the crops (n, m, 3) uint8 themselves."""

    stitched: list[Stitched]
    painted_u8: list[np.ndarray]
    report: dict[str, Any]


def choose_painter(settings: ComposeSettings, models: Models, background: LoadedImage) -> ComposeSettings:
    """The settings with the painter that auto means: paste for photographs without full-size weights."""
    if settings.painter != AUTO:
        return settings
    photograph = background.is_photograph
    small = settings.model is None and models.folder == located(TINY_MODEL) and settings.compat is None
    if photograph and small:
        logger.warning(
            "painter: paste, the relit cut-out: there are no full-size weights, and the small compositor "
            "knows rendered solids only (--painter bifrost uses it, --painter FOLDER a diffusers pipeline)"
        )
    return replace(settings, painter=PASTE if photograph and small else BIFROST)


def folder_painter(settings: ComposeSettings, models: Models) -> FolderPainter | None:
    """The pipeline of the settings, loaded once; None where they name none."""
    if settings.painter in (AUTO, BIFROST, PASTE):
        return None

    def load() -> FolderPainter:
        models.make_room()
        usual = "bf16" if models.device.type == "cuda" else "fp32"
        dtype = pick_dtype(settings.dtype, models.device, Path(settings.painter), usual)
        return FolderPainter.load(settings.painter, str(models.device), dtype, settings.offload)

    return load_once(models.others, (FolderPainter, settings.painter), load)


def paste(work: Work) -> tuple[Stitched, np.ndarray]:
    """The relit cut-out over the background, at the background's resolution; where the target mask was, the
    eraser's filling. Also returns the hole (H, W) bool that was filled.
    """
    geometry, sources, settings = work.geometry, work.sources, work.settings
    layers, window, background = geometry.native_layers, geometry.window, sources.background
    hole, target = np.zeros(layers.edit.shape, bool), geometry.inputs.target_mask
    if target is not None and settings.plain_mode != "place":
        grown = dilate(window.take_mask(target), geometry.options.dilation, frame=geometry.crop.native.size)
        hole = grown & layers.edit
    weight = layers.coverage_01
    over_u8 = relight(layers.placed.rgb_u8, sources.item, sources.cut_by == "alpha", background.rgb_u8)
    if hole.any():
        eraser, gone = work.models.eraser(settings.eraser), window.embed(hole)
        depth_01 = geometry.inputs.background_depth_01
        filled_u8, _ = erase_behind(eraser, background.rgb_u8, gone, gone, depth_01, settings.seed)
        filled = LoadedImage(filled_u8)
        filled = filled if work.under is None else filled.painted(*work.under)
        below = filled.rgb_u8[window.part].astype(np.float32)
        mixed_u8 = np.rint(below + weight[..., None] * (over_u8 - below)).astype(np.uint8)
        over_u8, weight = np.where(hole[..., None], mixed_u8, over_u8), np.where(hole, np.float32(1), weight)
    result = background.painted(over_u8, weight, layers.edit, window.part, work.under)
    return Stitched(result, window.embed(layers.edit)), window.embed(hole)


def erase_behind(
    eraser: Eraser, rgb_u8: np.ndarray, hole: np.ndarray, unknown: np.ndarray, depth_01: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) uint8 with the hole (H, W) bool filled by what is behind it, of which nothing unknown
    (H, W) bool gives colours, and the depth there; by exemplars floors and walls go on in perspective.

    depth_01: (H, W), with what is in the hole
    """
    filled_u8 = eraser.erase(rgb_u8, unknown, seed, in_front(depth_01, hole))
    behind = planes_behind(depth_01, hole)
    if eraser.kind == EXEMPLAR:
        ground = fit_ground(depth_01)
        plane = np.array([ground.plane.a, ground.plane.b, ground.plane.c]) if ground.measured else None
        given = unknown, behind, plane, ground.horizon_d, ground.horizon_d != HORIZON_D
        filled_u8, _ = continue_planes(filled_u8, hole, *given)
    return filled_u8, behind[0]


def relight(rgb_u8: np.ndarray, reference: LoadedImage, alone: bool, background_u8: np.ndarray) -> np.ndarray:
    """An object (h, w, 3) uint8 in the light of the background: factors on its channels.

    alone: nothing but the object is known of its image, so that says nothing about its light
    """
    if alone:
        return rgb_u8
    lights = []  # (3,) each, the NORM-mean of the linear values
    for image_u8 in (reference.rgb_u8, background_u8):
        counts = [np.bincount(channel, minlength=256) for channel in image_u8[::4, ::4].reshape(-1, 3).T]
        lights.append(np.maximum((counts @ LINEAR**NORM / np.sum(counts[0])) ** (1 / NORM), 1e-3))
    factors = np.clip((lights[1] / lights[0]) ** PART, 1 / MOST, MOST)
    relit = np.clip(LINEAR[:, None] * factors, 0, 1) ** (1 / 2.2)  # (256, 3), of every value of a channel
    return cv2.LUT(np.ascontiguousarray(rgb_u8), np.rint(255 * relit).astype(np.uint8)[None])


def at_once(models: Models) -> int:
    """How many images of different jobs the compositor paints in one batch: 1 where a batch saves nothing."""
    (h, w), device = models.config.pair.size, models.device.type
    small = models.dtype is torch.float32 and h * w <= SMALL  # others keep a core busy one by one
    small = small and models.engine != COMPILE  # there a row depends on how many there are
    return AT_ONCE if device == "cuda" or (device == "cpu" and small) else 1


def paint_by_compositor(works: Sequence[Work], monitor: Monitor) -> list[PaintedCrops]:
    """The samples of the compositor for one work, or one sample each for several of a `group`."""
    first = works[0]
    settings, models, timer, sampling = first.settings, first.models, first.timer, first.sampling
    with timer.stage("load"):
        compositor = models.compositor
    with timer.stage("paint"):
        rounded, seeds = settings.compat is None, [seed for work in works for seed in work.seeds]
        kept = models.recent if models.recent.limit else models.residuals, models.residuals
        decoder = models.decoder(settings.vae)
        pipeline = CompositorPipeline(compositor, models.device, settings.offload, *kept, decoder)
        pairs = [work.pair for work in works]
        painted = pipeline.paint(pairs, seeds, sampling, first.weights, monitor, rounded=rounded)
    spent, crops = {name: timer.seconds[name] / len(works) for name in ("load", "paint")}, []
    for work, images in zip(
        works, [painted] if len(works) == 1 else [[image] for image in painted], strict=True
    ):
        work.timer.seconds |= spent
        with work.timer.stage("paste back"):
            way, background = "mask-feather" if rounded else "legacy-rect", work.sources.background
            finish = partial(stitch, work.geometry, paste=way, background=background, under=work.under)
            detail, scale = sampling.detail, sampling.detail_scale
            stitched = [finish(image, detail=detail, detail_scale=scale) for image in images]
            warn_if_alike([each.result_u8 for each in stitched], stitched[0].edit_mask, sampling.steps)
        crops.append(PaintedCrops(stitched, [np.rint(image).astype(np.uint8) for image in images], {}))
    return crops


def paint_elsewhere(work: Work, cancelled: Callable[[], bool] | None = None) -> PaintedCrops:
    """The samples of `paste`, which are all the same, or of a pipeline that harmonises it."""
    settings, models, geometry, timer = work.settings, work.models, work.geometry, work.timer
    with timer.stage("load"):
        painter = folder_painter(settings, models)
    with timer.stage("paint"):
        pasted, hole = paste(work)
        report: dict[str, Any] = {"painter": settings.painter}
        if hole.any():
            report["eraser"] = models.eraser(settings.eraser).kind
        crop_u8 = geometry.crop.take(pasted.result.rgb_u8)
        if painter is None:
            if (count := settings.num_samples) > 1:
                logger.warning("painter paste draws nothing by chance: all samples are the same")
            return PaintedCrops([pasted] * count, [crop_u8] * count, report)
        prompt = settings.prompt or settings.object.stem.replace("_", " ").replace("-", " ")
        given = painter.arguments(prompt, settings.steps, settings.guidance, settings.strength)
        options = replace(geometry.options, reference_size=painter.size)
        view_u8 = square_view(geometry.cutout, geometry.params.reference_ratio, options)
        edit, painted = work.pair.edit_mask[0].numpy(), list[np.ndarray]()
        for seed in work.seeds:
            if cancelled is not None and cancelled():
                raise Cancelled
            painted.append(painter.paint(crop_u8, edit, view_u8, seed, given))
    with timer.stage("paste back"):
        finish = partial(stitch, geometry, background=work.sources.background, under=work.under)
        stitched = [finish(image) for image in painted]
    report["pipeline"] = {"class": type(painter.pipeline).__name__, **given}
    return PaintedCrops(stitched, painted, report)
