"""From two pictures and a place to a composite: the one way for command line, notebooks and batches.

    settings = ComposeSettings(background=Path("room.png"), object=Path("dog.png"), box=(0.4, 0.5, 0.7, 0.9))
    result = compose(settings, load_models(settings))

Stages: read and cut out, depth, pre-processing (`datasets.pairs`), painting (`cldm.pipeline`), paste-back
(`datasets.pasteback`).  Every pixel outside the final edit mask stays as it was, and that is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cldm.model import Compositor
from cldm.pipeline import Weights, paint
from cldm.pretrained import Card, Sampling, load_compositor
from compose_settings import ComposeSettings, depth_folder, model_folder
from datasets.geometry import bbox_of_mask, box_to_01, depth_at_foot, depth_extent
from datasets.inputs import Inputs
from datasets.layers import Layers
from datasets.pairs import Pair, build_pair
from datasets.pasteback import native_layers, stitch
from ldm.config import to_plain
from ldm.denoise import Step
from ldm.device import pick_device, pick_dtype
from ldm.experts import DepthEstimator
from ldm.images import Picture, read_depth, read_mask, read_picture
from ldm.result import StageTimer, file_sha256, hash_folder, library_versions, measure_drift
from ldm.segment import object_mask

logger = logging.getLogger(__name__)


@dataclass
class Models:
    """Loaded networks; the depth network is loaded when first needed."""

    compositor: Compositor
    card: Card
    folder: Path
    depth_folder: Path
    depth: DepthEstimator | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What `compose` returns. Picture i has seed `seeds[i]`."""

    images_u8: list[np.ndarray]  # n x (H, W, 3), the size of the background
    alpha_u8: np.ndarray | None  # (H, W) of the background, carried over
    edit_mask: np.ndarray  # (H, W) bool, what was allowed to change
    seeds: list[int]
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured
    inputs: Inputs
    pair: Pair
    painted_u8: list[np.ndarray]  # n x (h, w, 3), the model's own output
    layers: Layers = field(repr=False)  # the crop at native resolution


def load_models(settings: ComposeSettings) -> Models:
    """Load the compositor and say once what it is."""
    device = pick_device(settings.device)
    folder = model_folder(settings)
    compositor, card = load_compositor(folder, pick_dtype(settings.dtype, device))
    if card.notice:
        logger.info("%s", card.notice)
    return Models(
        compositor if settings.offload else compositor.to(device), card, folder, depth_folder(settings)
    )


def read_inputs(
    settings: ComposeSettings, depth_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[Inputs, Picture, dict]:
    """Files -> Inputs for the pre-processing, the background as read, and what was decided on the way.

    depth_of: RGB (h, w, 3) uint8 -> depth_01 (h, w), used where no depth file is given.
    """
    background, item = read_picture(settings.background), read_picture(settings.object)
    size = background.rgb_u8.shape[:2]
    if settings.object_mask is not None:
        cut, how = read_mask(settings.object_mask, size=item.rgb_u8.shape[:2]), "file"
    else:
        cut, how = object_mask(item, sam=settings.sam)
        logger.info("object mask: %s (give --object-mask to choose it yourself)", how)
    target = None if settings.target_mask is None else read_mask(settings.target_mask, size=size)
    box = place_box(settings, target)
    depth_01 = (
        read_depth(settings.background_depth) if settings.background_depth else depth_of(background.rgb_u8)
    )
    if depth_01.shape != size:
        raise ValueError(
            f"{settings.background_depth}: depth map is {depth_01.shape} (h, w), the background is {size}"
        )
    extent, source = depth_range(settings, depth_01, box)
    inputs = Inputs(
        reference_u8=item.rgb_u8,
        reference_mask=cut,
        background_u8=background.rgb_u8,
        background_depth_01=depth_01,
        box01_xyxy=box,
        depth_range=extent,
        mode=settings.mode,
        target_mask=target,
        reference_depth_01=read_depth(settings.object_depth) if settings.object_depth else None,
    )
    place = {
        "box": list(box),
        "depth": {"far": extent[0], "near": extent[1], "source": source},
        "mode": inputs.mode,
    }
    return inputs, background, {**place, "object_mask": how}


def place_box(settings: ComposeSettings, target: np.ndarray | None) -> tuple[float, float, float, float]:
    """The box as given, or that of the target mask."""
    if settings.box is not None:
        return settings.box
    if target is None:
        raise ValueError(
            "--box x1,y1,x2,y2 is needed (fractions of the background), or --target-mask with its place"
        )
    return box_to_01(bbox_of_mask(target), target.shape)


def depth_range(
    settings: ComposeSettings, depth_01: np.ndarray, box: tuple[float, float, float, float]
) -> tuple[tuple[float, float], str]:
    """(far, near) of the object and where it comes from."""
    if settings.depth is None:
        foot = depth_at_foot(depth_01, box)
        logger.info("no --depth: the background's depth at the bottom edge of the box is used, %.3f", foot)
        return depth_extent(foot, box), "foot of the box"
    if len(settings.depth) == 1:
        return depth_extent(settings.depth[0], box), "centre"
    return (settings.depth[0], settings.depth[1]), "range"


def sampling_of(settings: ComposeSettings, card: Card) -> Sampling:
    """The model's recommended sampler settings with the user's own on top."""
    names = ("scheduler", "steps", "guidance", "init", "strength", "detail")
    return replace(
        card.sampling,
        **{name: getattr(settings, name) for name in names if getattr(settings, name) is not None},
    )


def compose(
    settings: ComposeSettings,
    models: Models,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: bool = True,
) -> Result:
    """Put the object into the background. Reads files, writes none.

    Raises ValueError for whatever a user can mend, `ldm.denoise.Cancelled` when `cancelled` says so.
    """
    timer, device = StageTimer(), pick_device(settings.device)

    def depth_of(rgb_u8: np.ndarray) -> np.ndarray:
        if models.depth is None:
            models.depth = DepthEstimator.load(models.depth_folder, device=str(device))
        with timer.stage("depth"):
            return models.depth.estimate(rgb_u8)

    with timer.stage("read"):
        inputs, background, place = read_inputs(settings, depth_of)
    timer.seconds["read"] -= timer.seconds.get("depth", 0.0)
    sampling, options = sampling_of(settings, models.card), models.card.pair
    with timer.stage("prepare"):
        pair = build_pair(inputs, options)
        layers = native_layers(inputs, options, pair.crop)
    seeds = [settings.seed + index for index in range(settings.num_samples)]
    with timer.stage("paint"):
        painted = paint(
            models.compositor,
            pair,
            seeds,
            sampling,
            Weights(settings.detail_weight, settings.depth_weight),
            device=device,
            offload=settings.offload,
            on_step=on_step,
            cancelled=cancelled,
            progress=progress,
        )
    with timer.stage("paste back"):
        stitched = [
            stitch(inputs, options, pair.crop, picture, detail=sampling.detail, layers=layers)
            for picture in painted
        ]
    images = [one.result_u8 for one in stitched]
    drift = [
        measure_drift(background.rgb_u8, one.result_u8, one.edit_mask & ~one.keep_mask) for one in stitched
    ]
    recipe = make_recipe(settings, models, sampling)
    report = {
        **place,
        "visible_fraction": visible_fraction(layers),
        "drift": drift,
        "seeds": seeds,
        "device": str(device),
        "seconds": timer.report(),
    }
    return Result(
        images,
        background.alpha_u8,
        stitched[0].edit_mask,
        seeds,
        recipe,
        report,
        inputs,
        pair,
        painted,
        layers,
    )


def visible_fraction(layers: Layers) -> float:
    """Share of the placed cut-out that nothing hides."""
    return float(layers.coverage_01.sum() / max(layers.placed.alpha_01.sum(), 1e-6))


def make_recipe(settings: ComposeSettings, models: Models, sampling: Sampling) -> dict[str, Any]:
    """All that decides the pixels: settings, resolved sampler, hashes of inputs and weights, versions."""
    files = {
        name: value
        for name in ("background", "object", "object_mask", "target_mask", "background_depth", "object_depth")
        if (value := getattr(settings, name)) is not None
    }
    return {
        "command": "image",
        "settings": {one.name: to_plain(getattr(settings, one.name)) for one in fields(ComposeSettings)},
        "sampling": to_plain(sampling),
        "model": {
            "name": models.card.name,
            "folder": models.folder.as_posix(),
            "weights": hash_folder(models.folder),
        },
        "depth_model": models.depth_folder.as_posix() if models.depth is not None else None,
        "inputs": {name: file_sha256(path) for name, path in files.items()},
        "versions": library_versions(),
    }
