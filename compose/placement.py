"""From the files that settings name, and a sentence if there is one, to a place and the inputs there.

Every error names its file. A sentence becomes a box and a depth: locator and compositor meet here.

A locator is a folder with a vision-language model (`llava_bifrost.predict`), or "geometric"
(`llava_bifrost.placement.placer`), which needs the places of the named objects: from a file or a detector.
"""

import contextlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compose.models import Models
from compose.settings import DEPTH_MODES, ComposeSettings
from datasets.geometry import (
    Box01,
    bbox_of_mask,
    box_from_01,
    box_to_01,
    depth_at_contact,
    depth_extent,
    mask_of_box,
    whole_box,
)
from datasets.inputs import Inputs, PairOptions, check_object
from datasets.pairs import Geometry
from datasets.relations import Place
from ldm.decode import LoadedImage
from ldm.experts.segment import ObjectNotFound, mask_doubts, object_mask, things
from ldm.files import file_sha256, hash_folder
from ldm.images import read_depth, read_image, read_mask, resize
from llava_bifrost.language.answer import Candidate, satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.placement.placer import Item
from llava_bifrost.propose import as_json, propose
from llava_bifrost.settings import GEOMETRIC, WITH_SENTENCE

logger = logging.getLogger(__name__)

WITHIN = 0.6  # fraction of an object that lies in the box where it is what the box names (chosen)
SAME_ASPECT = 0.01  # largest relative difference in aspect between an image and its depth map


@dataclass(frozen=True, eq=False)
class Sources:
    """What the files hold. h w and H W are the sizes of object and background."""

    background: LoadedImage  # (H, W)
    item: LoadedImage  # (h, w)
    cut: np.ndarray  # (h, w) bool, the object
    cut_by: str  # file, alpha, sam, u2netp or grabcut
    target_box01: Box01 | None  # of the target mask
    target: np.ndarray | None  # (H, W) bool
    depth_01: np.ndarray | None  # (H, W), None: to be estimated
    object_depth_01: np.ndarray | None  # (h, w)
    doubts: list[str]  # what speaks against a mask that was found


def read_sources(settings: ComposeSettings) -> Sources:
    """Read and check all files; cheap checks run first."""
    background, item = read_image(settings.background), read_image(settings.object)
    target = box = None
    if settings.target_mask is not None:
        target = read_mask(settings.target_mask, size=background.size) ^ settings.invert_target_mask
        box = None if settings.box or settings.box_px else box_to_01(bbox_of_mask(target), background.size)
    depth_01 = depth_of(settings.background_depth, background.size)
    object_depth_01 = depth_of(settings.object_depth, item.size)
    if settings.object_mask is not None:
        cut, cut_by = read_mask(settings.object_mask, size=item.size), "file"
    else:
        try:
            cut, cut_by = object_mask(item, settings.sam, settings.cutout, settings.object_box)
        except ValueError as error:
            raise ValueError(f"{settings.object}: {error}") from error
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
    return Sources(background, item, cut, cut_by, box, target, depth_01, object_depth_01, doubts)


def make_inputs(settings: ComposeSettings, sources: Sources, depth_01: np.ndarray) -> tuple[Inputs, dict]:
    """Inputs of the pre-processing, and what was decided on the way, for the report.

    depth_01: (H, W) of the background
    """
    box = settings.box or sources.target_box01
    assert box is not None  # the settings refuse to be without a place
    if settings.depth is None:
        ground = depth_at_contact(depth_01, box)
        if settings.plain_mode in DEPTH_MODES:
            message = "depth: %.3f, the background's at the bottom edge of the box (--depth chooses it)"
            logger.info(message, ground)
        extent, source = depth_extent(ground, box), "foot of the box"
    elif len(settings.depth) == 1:
        extent, source = depth_extent(settings.depth[0], box), "centre"
    else:
        extent, source = (settings.depth[0], settings.depth[1]), "range"
    target, by = sources.target, "file"
    if settings.erases != "nothing":
        target, by = replaced_region(settings, sources.background.rgb_u8, box)
    inputs = Inputs(
        reference_u8=sources.item.rgb_u8,
        reference_mask=sources.cut,
        background_u8=sources.background.rgb_u8,
        background_depth_01=depth_01,
        box01_xyxy=box,
        depth_range=extent,
        mode=settings.plain_mode,
        target_mask=target,
        within_mask=settings.within_mask,
        reference_depth_01=sources.object_depth_01,
    )
    decided: dict[str, Any] = {
        "mode": inputs.mode,
        "box": list(box),
        "depth": {"far": extent[0], "near": extent[1], "source": source},
        "background_depth": "estimated" if sources.depth_01 is None else "file",
        "object_mask": sources.cut_by,
        "object_mask_doubts": sources.doubts,
    }
    if inputs.mode == "replace" and target is not None:
        decided["erased"] = {"by": by, "pixels": int(target.sum())}
    return inputs, decided


def replaced_region(
    settings: ComposeSettings, background_u8: np.ndarray, box01: Box01
) -> tuple[np.ndarray, str]:
    """What a box of the background (H, W, 3) names: the mask (H, W) of the object there, and what found it.

    The whole box, and "box", where that is asked for, or no object is found that lies mostly inside; then a
    warning says so.
    """
    size = background_u8.shape[:2]
    region = mask_of_box(whole_box(box_from_01(box01, size)), size)
    if settings.erase == "box":
        return region, "box"
    with contextlib.suppress(ObjectNotFound):
        mask, by = object_mask(LoadedImage(background_u8), settings.sam, settings.cutout, box01)
        if (mask & region).sum() >= WITHIN * mask.sum():
            logger.info("replaced: what %s finds in the box (--target-mask FILE or --erase box chooses)", by)
            return mask, by
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


@dataclass(frozen=True)
class Placement:
    """The proposals of a locator."""

    settings: ComposeSettings
    request: Request | None  # None: a free sentence that only the language model understood
    candidates: list[Candidate]  # best first
    anchors: dict[str, Place]  # known places of other objects
    locator: dict[str, Any]  # which one, with hashes

    def settings_of(self, index: int) -> ComposeSettings:
        """The settings with box and depth of a proposal instead of the sentence; they need no locator."""
        location, mode = self.candidates[index].location, self.settings.mode
        extent = location.extent or (location.d,)
        if self.request is not None and self.request.replace and mode == "place":
            mode = "replace"
        place = {"mode": mode, "box": location.box01_xyxy, "depth": self.settings.depth or extent}
        changes: dict[str, Any] = {"instruction": None, **WITH_SENTENCE, **place}
        return replace(self.settings, **changes)

    def record(self, chosen: int) -> dict[str, Any]:
        """For recipe and report: the sentence, the known places, and every proposal.

        Its keys are in the order of a record that was read again, so that a replay writes the same bytes.
        """
        candidates = [
            {
                "box": candidate.location.box01_xyxy,
                "depth": candidate.location.d,
                "far": far,
                "near": near,
                "log_probability": candidate.log_probability,
                "score": candidate.score,
                "text": candidate.text,
            }
            for candidate in self.candidates
            for far, near in [candidate.location.extent or (None, None)]
        ]
        record = {
            "instruction": self.settings.instruction,
            "locator": self.locator,
            "anchors": as_json(self.anchors),
            "candidates": candidates,
            "chosen": chosen,
            "satisfied": self.satisfied(chosen),
        }
        return json.loads(json.dumps(record, sort_keys=True))

    def satisfied(self, index: int) -> dict[str, bool]:
        """Every clause of the sentence -> whether it holds, where the places of its objects are known."""
        if self.request is None or not set(self.request.anchors) <= self.anchors.keys():
            return {}
        return satisfies(self.candidates[index].location, self.request, self.anchors)

    def log(self, chosen: int) -> None:
        """Say where the object goes; warn of clauses that do not hold there."""
        location = self.candidates[chosen].location
        box = ",".join(f"{value:.3f}" for value in location.box01_xyxy)
        rank = f"{chosen + 1} of {len(self.candidates)}"
        logger.info("place: --box %s --depth %.3f, by %s (%s)", box, location.d, self.locator["folder"], rank)
        broken = [clause for clause, holds in self.satisfied(chosen).items() if not holds]
        if broken:
            logger.warning("this place is not %s; --candidates 5 tries others", " and not ".join(broken))


def locate(settings: ComposeSettings, models: Models, sources: Sources, depth_01: np.ndarray) -> Placement:
    """Ask the locator where the object goes. depth_01: (h, w) of the background.

    ValueError where the geometric locator cannot take the sentence apart or does not know where an object is.
    """
    name = settings.locator_name
    x0, y0, x1, y1 = bbox_of_mask(sources.cut)
    item = Item((x1 - x0) / (y1 - y0), settings.relative_size)
    sentence, background_u8 = settings.instruction or "", sources.background.rgb_u8
    request, anchors, candidates = propose(
        settings, sentence, background_u8, depth_01, settings.anchors, item, models
    )
    locator: dict[str, Any] = {"folder": name}
    if name != GEOMETRIC:
        locator["weights"] = {**hash_folder(name), **hash_folder(name, "locator.json")}
    if settings.detector is not None:
        locator["detector"] = settings.detector.as_posix()
        locator["detector_weights"] = hash_folder(settings.detector)
    if settings.anchors is not None:
        locator["anchors"] = settings.anchors.as_posix()
        locator["anchors_sha256"] = file_sha256(settings.anchors)
    return Placement(settings, request, candidates, anchors, locator)


def resolve_placement(
    settings: ComposeSettings,
    placement: Placement | None,
    sources: Sources,
    depth_01: np.ndarray,
    options: PairOptions,
) -> tuple[ComposeSettings, Geometry, dict[str, Any]]:
    """The geometry at the box of the settings, or at the best proposal at which the object shows.

    Returns settings with a box, geometry, and what was decided, for the report; its `placement` is the
    record of the locator's answer. Raises ValueError where nothing of the object would show.
    """
    tries = [settings]
    if placement is not None:
        tries = [placement.settings_of(index) for index in range(len(placement.candidates))]
    for chosen in range(len(tries)):
        inputs, decided = make_inputs(tries[chosen], sources, depth_01)
        geometry = Geometry.of(inputs, options)
        layers = geometry.native_layers
        if layers.visible.any() and layers.edit.any():
            break
    else:
        box = ",".join(f"{value:.3g}" for value in decided["box"])
        if not (layers.placed.alpha_01 > 0.5).any():
            raise ValueError(f"--box {box} is too small: the object would cover less than a pixel")
        if inputs.mode not in DEPTH_MODES:
            raise ValueError(
                f"--box {box} does not meet the target mask: nothing of the object would be visible"
            )
        h, w = depth_01.shape
        x0, y0, x1, y1 = (round(value) for value in box_from_01(decided["box"], (h, w)))
        there = depth_01[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        far, near = inputs.depth_range
        raise ValueError(
            f"nearer objects hide the object completely: at --box {box} the background's depth is "
            f"{there.min():.3f} to {there.max():.3f}, the object's {far:.3f} to {near:.3f} (1 = nearest); "
            "raise --depth or move --box"
        )
    if placement is None:
        return tries[chosen], geometry, decided
    placement.log(chosen)
    if settings.depth is None:
        decided["depth"]["source"] = "instruction"
    return tries[chosen], geometry, {**decided, "placement": placement.record(chosen)}
