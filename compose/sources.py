"""What the files of a composite hold, and the inputs of the pre-processing at a box. Errors name the file.

A preview shows what is visible of the object, by geometry and paste only. Its masks are those
of `compose`, on a smaller image.
"""

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from compose.settings import DEPTH_MODES, ComposeSettings
from datasets import geometry
from datasets.inputs import Inputs, PairOptions, check_object
from datasets.pairs import Geometry
from ldm.decode import LoadedImage
from ldm.experts.matting import alpha_at_outline, own_colours, soft_alpha
from ldm.experts.segment import ObjectNotFound, mask_doubts, object_mask, things, with_parts
from ldm.files import named_failure
from ldm.images import fitted, read_depth, read_image, read_mask, resize
from ldm.recent import FORGETFUL, Recent

if TYPE_CHECKING:
    from compose.job import EraseSettings
    from compose.scene import JobScene

logger = logging.getLogger(__name__)

WITHIN = 0.6  # fraction of an object that lies in the box where it is what the box names (chosen)
SAME_ASPECT = 0.01  # largest relative difference in aspect between an image and its depth map


@dataclass(frozen=True, eq=False)
class Sources:
    """What the files hold. h w and H W are the sizes of object and background."""

    background: LoadedImage  # (H, W)
    item: LoadedImage  # (h, w); along a soft edge the object's own colours
    cut: np.ndarray  # (h, w) bool, the object
    cut_by: str  # file, alpha, sam, u2netp or grabcut
    target_box01: geometry.Box01 | None  # of the target mask
    target: np.ndarray | None  # (H, W) bool
    depth_01: np.ndarray | None  # (H, W), None: to be estimated
    object_depth_01: np.ndarray | None  # (h, w)
    doubts: list[str]  # what speaks against a mask that was found
    stage: "JobScene | None" = None  # instead of the files of the background
    alpha_01: np.ndarray | None = None  # (h, w) float32 coverage by the object, None: that of the mask

    @property
    def extent(self) -> np.ndarray:
        """(h, w) bool: the object with its soft edge."""
        return self.cut if self.alpha_01 is None else self.cut | (self.alpha_01 > 0)


def read_sources(
    settings: ComposeSettings, stage: "JobScene | None" = None, recent: Recent = FORGETFUL
) -> Sources:
    """Read and check all files; cheap checks run first.

    stage: instead of the background and its depth. recent: keeps background and object for jobs to come
    """
    if stage is not None:
        background = stage.image
    else:
        background = recent.once(lambda: read_image(settings.background), "image", settings.background)
    decisive = str(settings.sam), settings.cutout, settings.object_box, settings.device, settings.dtype
    files = settings.object, settings.object_mask
    thing = recent.once(lambda: read_object(settings), "object", *files, *decisive, settings.hard_edge)
    target = box = None
    if settings.target_mask is not None:
        target = read_mask(settings.target_mask, size=background.size) ^ settings.invert_target_mask
        if settings.box is None and settings.box_px is None:
            box = geometry.box_to_01(geometry.bbox_of_mask(target), background.size)
    depth_01 = stage.depth_01 if stage else depth_of(settings.background_depth, background.size)
    object_depth_01 = depth_of(settings.object_depth, thing["item"].size)
    return Sources(
        background=background, target_box01=box, target=target, depth_01=depth_01,
        object_depth_01=object_depth_01, stage=stage, **thing)  # fmt: skip


def read_object(settings: ComposeSettings) -> dict[str, Any]:
    """The object's part of `Sources`."""
    item = read_image(settings.object)
    if settings.object_mask is not None:
        cut, cut_by = read_mask(settings.object_mask, size=item.size), "file"
    else:
        with named_failure(f"{settings.object}", ValueError):
            asked = settings.sam, settings.cutout, settings.object_box, settings.device, settings.dtype
            cut, cut_by = object_mask(item, *asked)
        better = "; python -m ldm.registry pull u2netp gets a network for it" if cut_by == "grabcut" else ""
        logger.info("object mask: %s (--object-mask FILE chooses it%s)", cut_by, better)
    found = cut_by not in ("file", "alpha")
    doubts = mask_doubts(item.rgb_u8, cut) if found else []
    boxes = [",".join(f"{value:.2f}" for value in thing) for thing in things(cut)] if found else []
    if len(boxes) > 1:
        doubts.append(f"it shows {len(boxes)} things; --object-box chooses one: {' or '.join(boxes)}")
    for doubt in doubts:
        message = "%s: the object mask may be wrong: %s; see the sheet, or give --object-mask or --sam"
        logger.warning(message, settings.object, doubt)
    check_object(cut, where=f"{settings.object_mask or settings.object}: the object")
    alpha_01 = None
    if not settings.hard_edge and cut_by == "alpha" and item.alpha_u8 is not None:  # colours are the object's
        alpha_01 = alpha_at_outline(cut, item.alpha_u8)
    elif not settings.hard_edge:
        alpha_01 = soft_alpha(item.rgb_u8, cut)
        item = replace(item, rgb_u8=own_colours(item.rgb_u8, alpha_01))
    return {"item": item, "cut": cut, "cut_by": cut_by, "doubts": doubts, "alpha_01": alpha_01}


def object_depth_is_estimated(settings: ComposeSettings) -> bool:
    """Whether the depth network gives the object's relief, as published, instead of a rounded body."""
    published = settings.compat == "bifrost" and settings.plain_mode in DEPTH_MODES
    return published and settings.object_depth is None


def uses_depth_network(settings: ComposeSettings) -> bool:
    """Whether a depth map is missing that the depth network then estimates."""
    return settings.background_depth is None or object_depth_is_estimated(settings)


def make_inputs(settings: ComposeSettings, sources: Sources, depth_01: np.ndarray) -> tuple[Inputs, dict]:
    """Inputs of the pre-processing, and what was decided on the way, for the report. depth_01: (H, W) of the
    background.
    """
    box = settings.box or sources.target_box01
    assert box is not None  # the settings refuse to be without a place
    target, by = sources.target, "file"
    if settings.erases != "nothing":
        target, by = replaced_region(settings, sources.background.rgb_u8, box)
    standing = box  # where the object stands in depth
    if settings.plain_mode == "replace" and target is not None and settings.compat is None:
        box = where_it_covers(sources.cut, target, box)
    extent = geometry.extent_in_depth(settings.depth, depth_01, box, standing)
    source = ("foot of the box", "centre", "range")[len(settings.depth or ())]
    if settings.depth is None and settings.plain_mode in DEPTH_MODES:
        message = "depth: %.3f, the background's at the bottom edge of the box (--depth chooses it)"
        logger.info(message, geometry.depth_at_contact(depth_01, standing))
    if sources.stage is not None:
        depth_01 = sources.stage.ordered_for(*extent)
    relief = "rounded body" if sources.object_depth_01 is None else "estimated"
    inputs = Inputs(
        reference_u8=sources.item.rgb_u8, reference_mask=sources.cut, reference_alpha_01=sources.alpha_01,
        background_u8=sources.background.rgb_u8, background_depth_01=depth_01,
        box01_xyxy=box, depth_range=extent, mode=settings.plain_mode,
        target_mask=target, within_mask=settings.within_mask, reference_depth_01=sources.object_depth_01,
    )  # fmt: skip
    decided: dict[str, Any] = {
        "mode": inputs.mode, "box": list(box),
        "depth": {"far": extent[0], "near": extent[1], "source": source},
        "background_depth": "estimated" if sources.depth_01 is None else "file",
        "object_depth": "file" if settings.object_depth else relief,
        "object_mask": sources.cut_by, "object_mask_doubts": sources.doubts}  # fmt: skip
    if inputs.mode == "replace" and target is not None:
        decided["erased"] = {"by": by, "pixels": int(target.sum())}
    return inputs, decided


def where_it_covers(cut: np.ndarray, target: np.ndarray, box01: geometry.Box01) -> geometry.Box01:
    """The box of an object (h, w) that its image cuts off below, in the place of a target (H, W) in a box.

    Such an object does not stand on its lowest edge: it goes where it covers most of what it replaces.
    """
    (h, w), (x0, y0, x1, y1), (left, top, right, bottom) = target.shape, box01, geometry.bbox_of_mask(cut)
    high = (x1 - x0) * w * (bottom - top) / (right - left) / h  # its height in the width of the box
    if bottom < len(cut) or high >= y1 - y0:
        return box01
    x, y = (np.rint(np.multiply(ends, side)).astype(int) for ends, side in (((x0, x1), w), ((y0, y1), h)))
    covered = np.concatenate([[0], target[y[0] : y[1], x[0] : x[1]].sum(axis=1).cumsum()])
    rows = min(max(1, round(high * h)), len(covered) - 1)
    start = y[0] + int((covered[rows:] - covered[:-rows]).argmax())
    return x0, float(start / h), x1, float(min(start / h + high, 1.0))


def replaced_region(
    settings: "ComposeSettings | EraseSettings", background_u8: np.ndarray, box01: geometry.Box01
) -> tuple[np.ndarray, str]:
    """What a box of the background (H, W, 3) names: the mask (H, W) of the object there, and what found it.

    The whole box, and "box", where that is asked for, or no object is found that lies mostly inside; then a
    warning says so.
    """
    size = background_u8.shape[:2]
    region = geometry.mask_of_box(geometry.whole_box(geometry.box_from_01(box01, size)), size)
    if settings.erase == "box":
        return region, "box"
    with contextlib.suppress(ObjectNotFound):
        how = settings.device, getattr(settings, "dtype", "auto")
        mask, by = object_mask(LoadedImage(background_u8), settings.sam, settings.cutout, box01, *how)
        if (mask & region).sum() >= WITHIN * mask.sum():
            logger.info("replaced: what %s finds in the box (--target-mask FILE or --erase box chooses)", by)
            return (mask if by == "sam" else with_parts(background_u8, mask, region)), by
    shown = ",".join(f"{value:.3g}" for value in box01)
    message = "no object is found in --box %s: all that it shows is replaced; --target-mask FILE chooses"
    logger.warning(message, shown)
    return region, "box"


def depth_of(path: Path | None, size: tuple[int, int]) -> np.ndarray | None:
    """A depth map at the (h, w) of its image; another resolution is fitted, another aspect refused."""
    if path is None:
        return None
    depth_01 = read_depth(path)
    (h, w), (want_h, want_w) = depth_01.shape, size
    if (h, w) == size:
        return depth_01
    if abs(w * want_h / (h * want_w) - 1) > SAME_ASPECT:
        raise ValueError(
            f"depth map {path} is {w} x {h} pixels, its image is {want_w} x {want_h} (width x height); "
            f"the proportions must agree within {SAME_ASPECT:.0%}"
        )
    logger.info("depth map: resized from %d x %d to %d x %d", w, h, want_w, want_h)
    return resize(depth_01, size)


SIDE = 640  # pixels of the longer side, at most; chosen: a screen shows no more, and 150 ms suffice
OUTLINE = (255, 255, 255)  # of the part that nearer objects hide


@dataclass(frozen=True, eq=False)
class Occlusion:
    image_u8: np.ndarray  # (h, w, 3), the visible part pasted, the outline of the whole drawn
    visible: np.ndarray  # (h, w) bool
    visible_fraction: float  # of the object
    depth_range: tuple[float, float]  # far, near


def shrink(sources: Sources, depth_01: np.ndarray) -> tuple[Sources, np.ndarray]:
    """Sources and depth (H, W) at the size of a preview; the object is cut to its box first."""
    size, part = fitted(sources.background.size, SIDE), geometry.tight_slices(sources.extent)
    small, target, depth = fitted(sources.cut[part].shape, SIDE), sources.target, sources.object_depth_01
    shrunk = replace(
        sources,
        background=LoadedImage(resize(sources.background.rgb_u8, size)),
        item=LoadedImage(resize(sources.item.rgb_u8[part], small)),
        cut=resize(sources.cut[part], small),
        alpha_01=None if sources.alpha_01 is None else resize(sources.alpha_01[part], small),
        target=None if target is None else resize(target, size),
        object_depth_01=None if depth is None else resize(depth[part], small),
    )
    return shrunk, resize(depth_01, size)


def occlusion(
    settings: ComposeSettings, sources: Sources, depth_01: np.ndarray, options: PairOptions
) -> Occlusion:
    """The object at the box and depth of the settings. sources, depth_01: as `shrink` gives them; options:
    the pre-processing of the compositor that will paint. ValueError as in `compose`.
    """
    inputs, _ = make_inputs(settings.in_fractions(sources.background.size), sources, depth_01)
    placed = Geometry.of(inputs, options)
    layers, window = placed.native_layers, placed.window
    image_u8 = sources.background.rgb_u8.copy()
    image_u8[window.part] = layers.paste_u8
    silhouette = window.embed(layers.placed.alpha_01 > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(silhouette, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image_u8, outlines, -1, OUTLINE, 1)
    return Occlusion(image_u8, window.embed(layers.visible), layers.visible_fraction, inputs.depth_range)
