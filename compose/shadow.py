"""The shadow of a placed object: how much of its light the ground keeps, decided before anything is painted.

Only the ground plane on which the object stands is darkened: what is nearer than the plane, or behind it,
keeps every byte. Legend: H W pixels of the background, h w of the square that the shadow lies in.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from compose.models import Models
from compose.settings import CAST, OFF, SHADOW_MODEL, ComposeSettings
from compose.sources import Sources
from datasets.geometry import (
    Box,
    Box01,
    Crop,
    Size,
    bbox_of_mask,
    box_to_01,
    crop_round,
    depth_at_contact,
)
from datasets.pairs import Geometry
from ldm.decode import Overlay, row_blocks
from ldm.experts.shadow import SIDE, ShadowNetwork
from ldm.files import located
from ldm.images import resize
from llava_bifrost.placement.ground import VIEW_DEGREES, Ground, Plane, fit_ground

logger = logging.getLogger(__name__)

# Chosen on validation scenes of `tiny.shadow.train`.
LEVELS = ((0.05, 0.3), (0.3, 0.3))  # spread in sizes of the object, darkening under it
LIFTED = 0.4  # sizes of the object above the ground from which it darkens nothing by touch
LEAST = 0.01  # darkening that is left out; from twice as much on all of it counts
STRONGER = 1.3  # of the network's darkening, which is careful: it does not know the light
DEEP = 0.5  # of the width of an object, its foot on the ground from front to back
FLATTEST = 0.1  # rows for a length on the ground that covers one column
FADE = 0.1  # of the square, along which the network's darkening fades at its border
ZOOM = 4.0  # side of the square that the network sees, in sizes of the object
NOISE = 4.5  # medians of the error of the ground's depth, within which a pixel shows it: three deviations
EXACT = 0.004  # depth; no map is more exact
ENOUGH = 1024  # pixels of a side, by which a plane is measured


@dataclass(frozen=True, eq=False)
class Shadow:
    """What a shadow may change, and by how much it darkens there."""

    darkening_01: np.ndarray  # (h, w) float32, the fraction of its light that a pixel of the cut loses
    cut: Crop  # h w, native, of a background (H, W)

    @property
    def region(self) -> np.ndarray:
        """(H, W) bool: where it darkens."""
        return self.cut.embed(self.darkening_01 > 0)

    @property
    def paint(self) -> Overlay:
        """What darkens an image (H, W); a transparent one gets a veil."""
        black_u8 = np.broadcast_to(np.uint8(0), (*self.darkening_01.shape, 3))
        return black_u8, self.darkening_01, self.darkening_01 > 0, self.cut.part

    def report(self, kind: str, edit_mask: np.ndarray) -> dict[str, Any]:
        """Pixels of the region beside the object's own edit mask (H, W), and their mean darkening."""
        beside = self.darkening_01 > 0
        beside[edit_mask[self.cut.part]] = False
        mean, *_ = cv2.mean(self.darkening_01, beside.view(np.uint8))  # 0 without any
        return {"kind": kind, "pixels": int(beside.sum()), "mean_darkening": mean}


def in_shadow(
    settings: ComposeSettings, geometry: Geometry, sources: Sources, models: Models
) -> tuple[Geometry, Shadow | None]:
    """The geometry with the background in the shadow of the object, and the shadow; as it is where there is
    none.
    """
    if settings.shadow_there == OFF:
        return geometry, None
    layers, window, inputs = geometry.native_layers, geometry.window, geometry.inputs
    left, top = window.box_xyxy[:2]
    (x0, y0, x1, y1), (h, w) = bbox_of_mask(layers.placed.alpha_01 > 0.5), window.background_size
    box = x0 + left, y0 + top, x1 + left, y1 + top
    crop = crop_round(box, (h, w), ZOOM, (SIDE, SIDE), "shift", "inclusive")
    own = np.s_[y0:y1, x0:x1]
    fewer = min(1.0, ENOUGH / max(h, w))
    sparse = (((np.arange(round(side * fewer)) + 0.5) / fewer).astype(int) for side in (h, w))
    whole_01, _ = depth_without(geometry, *sparse)
    ground, near = ground_under(whole_01, box_to_01(box, (h, w)), inputs.depth_range)
    if settings.shadow == CAST:
        if sources.background.is_photograph:
            logger.warning("--shadow cast: the shadow network knows rendered rooms only (contact needs none)")
        network = models.once(located(SHADOW_MODEL), ShadowNetwork.load)
        shared = crop.native.narrowed(window.box_xyxy)
        mask_01, own_01 = np.zeros((2, *crop.native.size), np.float32)
        for here_01, there_01 in (
            (mask_01, layers.placed.alpha_01),
            (own_01, layers.placed.depth_01),
        ):
            here_01[crop.within(shared)] = there_01[window.within(shared)]
        scene_01, _ = depth_without(geometry, *crop.part)
        planes = inputs.background_u8[crop.part], scene_01, mask_01, own_01
        square_01 = np.minimum(STRONGER * network.darkening(*map(crop.fit, planes)), 1)
    else:
        own_01 = layers.placed.depth_01[own]
        if inputs.reference_depth_01 is None:  # a rounded body: its outline lies in its middle
            own_01 = np.broadcast_to(np.float32(sum(inputs.depth_range) / 2), own_01.shape)
        square_01 = contact(ground, layers.placed.alpha_01[own] > 0.5, own_01, box, crop)
    x0, y0, x1, y1 = crop.box_xyxy
    open_sides = (y0 == 0, y1 == h), (x0 == 0, x1 == w)  # it fades at the others
    inside = np.pad(np.ones((SIDE - 2, SIDE - 2), np.uint8), 1, constant_values=open_sides)
    fade = np.minimum(cv2.distanceTransform(inside, cv2.DIST_L2, 3) / (FADE * SIDE), 1)
    dark_01, cut = undo_part(crop, (square_01 * fade).astype(np.float32), LEAST)
    part = cut.part
    things = sources.stage.things.values() if sources.stage is not None else ()
    for rows in row_blocks(len(dark_01)):
        here = slice(part[0].start + rows.start, min(part[0].start + rows.stop, part[0].stop)), part[1]
        scene_01, allowed = depth_without(geometry, *here)
        allowed |= np.abs(scene_01 - plane_over((h, w), ground.plane, np.arange(h)[here[0]], part[1])) < near
        for thing in things:
            allowed &= ~thing.mask[here]  # what earlier layers placed is no ground
        if inputs.within_mask and inputs.target_mask is not None:
            allowed &= inputs.target_mask[here]
        dark_01[rows] *= np.clip(dark_01[rows] / LEAST - 1, 0, 1) * allowed
    shadow, native = Shadow(dark_01, cut), geometry.crop.native
    if min((shared := native.narrowed(cut.box_xyxy)).size) > 0:
        black_u8, weight_01, darker = (value[cut.within(shared)] for value in shadow.paint[:3])
        place = native.within(shared)
        shown = sources.background.cut(native.part).painted(black_u8, weight_01, darker, place)
        geometry = geometry.over(shown.rgb_u8)
    return geometry, shadow


def undo_part(crop: Crop, square_01: np.ndarray, least: float) -> tuple[np.ndarray, Crop]:
    """`crop.undo` of a square (n, m), where it is more than `least`: (h, w), and the cut where that lies.

    Large images have many more pixels than that. Where nothing is more, the cut has one pixel.
    """
    lit, ends = square_01 > least, []
    for axis, (size, pad, side) in enumerate(
        zip(crop.padded_size, crop.pad[1::-1], crop.native.size, strict=True)
    ):
        found = np.flatnonzero(lit.any(axis=1 - axis)) if lit.any() else np.zeros(1, int)
        low, high = (found[[0, -1]] + (-1, 2)) * size / square_01.shape[axis]  # and what they reach
        first = min(max(int(low), pad), pad + side - 1)
        ends.append(slice(first, max(min(int(high) + 1, pad + side), first + 1)))
    (h, w), (rows, columns) = crop.padded_size, ends
    tall_01 = resize(square_01, (h, square_01.shape[1]))[rows]  # one direction after the other: less is made
    found_01 = resize(np.ascontiguousarray(tall_01), (len(tall_01), w))[:, columns]
    dark = found_01 > least
    x0, y0, x1, y1 = bbox_of_mask(dark) if dark.any() else (0, 0, 1, 1)
    x, y = crop.box_xyxy[0] + columns.start - crop.pad[0], crop.box_xyxy[1] + rows.start - crop.pad[1]
    return found_01[y0:y1, x0:x1].copy(), crop.native.narrowed((x + x0, y + y0, x + x1, y + y1))


def depth_without(geometry: Geometry, rows: Any, columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the scene in some rows and columns, float32, without the object; where that is seen, bool.

    rows, columns: two slices, or the indices of both
    """
    layers, (left, top, right, bottom) = geometry.native_layers, geometry.window.box_xyxy
    whole_01 = geometry.inputs.background_depth_01
    found = whole_01[(rows, columns) if isinstance(rows, slice) else np.ix_(rows, columns)].astype(np.float32)
    places, own = [], []  # what lies in the window, and where it is there
    for side, axis, ends in zip(whole_01.shape, (rows, columns), ((top, bottom), (left, right)), strict=True):
        y = np.arange(side)[axis]
        places.append(slice(*np.searchsorted(y, ends)))
        met = y[places[-1]] - ends[0]
        own.append(slice(met[0], met[-1] + 1) if isinstance(axis, slice) and len(met) else met)
    seen, depth_01 = (map_[own[0]][:, own[1]] for map_ in (layers.visible, layers.depth_01))
    visible = np.zeros(found.shape, bool)
    visible[tuple(places)] = seen
    np.copyto(found[tuple(places)], depth_01, where=~seen)
    return found, visible


def plane_over(size: Size, plane: Plane, rows: Any, columns: slice) -> np.ndarray:
    """Depth of a plane at the pixels of these rows and columns of an image (H, W), float32."""
    y, x = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in size)
    return np.asarray(plane.at(x[columns], y[rows, None]))


def ground_under(
    scene_01: np.ndarray, box01: Box01, depth_range: tuple[float, float]
) -> tuple[Ground, float]:
    """The ground on which an object stands, and how near to its plane a pixel is ground.

    scene_01: (n, m), depth of the whole scene without the object. Where that shows the foot of the object on
    a table, the plane of the floor is raised to it. A pixel is ground where it is as exactly on the plane as
    the floor is; none is where the plane lies before the object, as the top of a bed before what stands
    behind it.
    """
    ground, everywhere = fit_ground(scene_01, [box01]), slice(None)
    flat_01 = plane_over(scene_01.shape, ground.plane, everywhere, everywhere)
    seen = resize(ground.seen, flat_01.shape, how="nearest")
    tolerance, error = ground.plane.tolerance, np.abs(scene_01 - flat_01)
    noise = float(np.median(error[seen])) if seen.any() else 0.0
    near = float(np.clip(NOISE * noise, EXACT, 2 * tolerance))
    foot, expected = (depth_at_contact(map_01, box01) for map_01 in (scene_01, flat_01))
    stands = 1.5 * depth_range[0] - 0.5 * depth_range[1] <= foot <= depth_range[1]
    if stands and abs(foot - expected) > 2 * tolerance:
        factor = ground.scale(foot) / ground.scale(expected)
        ground = replace(ground, plane=ground.plane.raised(float(factor), ground.horizon_d))
        flat_01 = plane_over(scene_01.shape, ground.plane, everywhere, everywhere)
        near = 2 * tolerance  # where infinity lies is not known exactly
    hides = depth_at_contact(flat_01, box01) > depth_range[1] + 2 * tolerance  # the object's foot
    return ground, 0.0 if hides else near


def contact(ground: Ground, solid: np.ndarray, own_01: np.ndarray, box: Box, crop: Crop) -> np.ndarray:
    """Ambient occlusion (n, n) float32 of the ground by an object's lower edge, in a crop of n x n pixels.

    solid: (h, w) bool, the whole object in its bounding box;  own_01: (h, w), its depth. Where the lowest
    pixel of a column has the depth of the ground behind it the object touches the ground; where it is nearer
    it is as far above its foot.
    """
    (h, w), (left, top), plane = crop.background_size, crop.box_xyxy[:2], ground.plane
    x0, y0, x1, y1 = box[0] - left, box[1] - top, box[2] - left, box[3] - top
    size = np.sqrt((x1 - x0) * (y1 - y0))
    # Rows are nearer to each other on the ground than columns, the more so the flatter it is seen.
    horizon, half = plane.height_of(0.5, ground.horizon_d) * h, np.tan(np.radians(VIEW_DEGREES / 2))
    tilt = float(np.clip((top + y1 - horizon) * 2 * half / max(h, w), FLATTEST, 1))
    deep = max(1, round(DEEP * tilt * (x1 - x0)))
    columns = x0 + np.flatnonzero(solid.any(axis=0))
    lowest = y1 - solid[::-1, columns - x0].argmax(axis=0)  # the row below it
    foot = plane.height_of((left + columns + 0.5) / w, own_01[lowest - 1 - y0, columns - x0]) * h - top
    lifted = np.maximum(np.maximum(foot, y1 - deep) - lowest, 0)
    touch = np.maximum(1 - lifted / (LIFTED * size), 0) ** 2
    print_01 = np.zeros(crop.native.size, np.float32)  # takes memory only where it is written
    below = np.rint(lowest + lifted).astype(int)
    first, last = np.clip((below.min() - deep, below.max()), 0, len(print_01))
    y = np.arange(first, last)[:, None]
    print_01[first:last, columns] = touch.astype(np.float32) * ((y >= below - deep) & (y < below))
    small_01, light = crop.fit(print_01), np.ones(crop.size, np.float32)
    for spread, strength in LEVELS:
        across, along = (
            max(spread * size * part * crop.size[0] / crop.padded_size[0], 0.3) for part in (1, tilt)
        )
        light *= 1 - strength * cv2.GaussianBlur(small_01, (0, 0), across, sigmaY=along)
    return 1 - light
