"""From a sentence to a box and a depth: the glue of locator and compositor.

A locator is a folder with a language model that sees (`llava_bifrost.predict`), or "geometric"
(`llava_bifrost.placement.placer`), which needs to be told or shown where the named things are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compose.inputs import Sources, make_inputs, require_visible
from compose.models import Models
from compose.settings import GEOMETRIC, ComposeSettings, locator_of
from datasets.geometry import bbox_of_mask
from datasets.inputs import PairOptions
from datasets.layers import Geometry
from datasets.relations import Place
from ldm.files import file_sha256, hash_folder
from llava_bifrost.language.answer import (
    Candidate,
    InstructionError,
    Request,
    parse_instruction,
    satisfies,
)
from llava_bifrost.placement.anchors import as_json, detect_anchors, read_anchors
from llava_bifrost.placement.placer import Item, place_object

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """What a locator said. settings_of(i) are the settings with proposal i in place of the sentence."""

    settings: ComposeSettings
    request: Request | None  # None: a free sentence that only the language model understood
    candidates: list[Candidate]  # best first
    anchors: dict[str, Place]  # what was known of other things
    locator: dict[str, Any]  # which one, with hashes

    def settings_of(self, index: int) -> ComposeSettings:
        """Settings that say by box and depth what the sentence said; no locator is needed for them."""
        location = self.candidates[index].location
        extent: tuple[float, ...] = (location.depth,)
        if location.far is not None and location.near is not None:
            extent = (location.far, location.near)
        mode = self.settings.mode
        if self.request is not None and self.request.replace and mode == "place":
            mode = "replace"
        return replace(
            self.settings,
            instruction=None,
            locator=None,
            anchors=None,
            detector=None,
            candidates=1,
            relative_size=None,
            mode=mode,
            box=location.box01_xyxy,
            depth=self.settings.depth or extent,
        )

    def record(self, chosen: int) -> dict[str, Any]:
        """For recipe and report: the sentence, what was known, and every proposal.

        In the order of keys that it has when it is read again, so that a replay writes the same bytes.
        """
        said = {
            "instruction": self.settings.instruction,
            "locator": self.locator,
            "anchors": as_json(self.anchors),
            "candidates": [_plain(one) for one in self.candidates],
            "chosen": chosen,
            "satisfied": self.satisfied(chosen),
        }
        return json.loads(json.dumps(said, sort_keys=True))

    def satisfied(self, index: int) -> dict[str, bool]:
        """Every clause of the sentence -> whether it holds, where the places of the things are known."""
        if self.request is None or not set(self.request.anchors) <= self.anchors.keys():
            return {}
        return satisfies(self.candidates[index].location, self.request, self.anchors)


def _plain(one: Candidate) -> dict[str, Any]:
    where = one.location
    return {
        "box": list(where.box01_xyxy),
        "depth": where.depth,
        "far": where.far,
        "near": where.near,
        "log_probability": one.log_probability,
        "score": one.score,
        "text": one.text,
    }


def locate(settings: ComposeSettings, models: Models, sources: Sources, depth_01: np.ndarray) -> Placement:
    """Ask the locator where the object goes. depth_01: (h, w) of the background."""
    instruction = settings.instruction or ""
    request = _understood(instruction, geometric=locator_of(settings) == GEOMETRIC)
    anchors = known_anchors(settings, models, request, sources.background.rgb_u8, depth_01)
    if locator_of(settings) == GEOMETRIC:
        assert request is not None  # the geometric locator refuses what it cannot take apart
        item = Item(_aspect(sources.cut), settings.relative_size)
        found = place_object(request, anchors, depth_01, item=item, candidates=settings.candidates)
    else:
        locator = models.locator(Path(locator_of(settings)))
        found = locator.locate(
            sources.background.rgb_u8,
            instruction,
            settings.candidates,
            settings.seed,
            depth_01=depth_01,
            anchors=anchors if request is not None and set(request.anchors) <= anchors.keys() else None,
        )
    return Placement(settings, request, found, anchors, _identity(settings))


@dataclass(frozen=True, eq=False)
class Placed:
    """The inputs of the pre-processing at their place."""

    settings: ComposeSettings  # with a box
    geometry: Geometry
    decided: dict[str, Any]  # for the report
    placement: dict[str, Any] | None  # what the locator said


def settle(
    settings: ComposeSettings,
    placement: Placement | None,
    sources: Sources,
    depth_01: np.ndarray,
    options: PairOptions,
) -> Placed:
    """The inputs at the box of the settings, or at the best proposal at which the object shows.

    Raises ValueError where nothing of it would show.
    """
    tries = [settings]
    if placement is not None:
        tries = [placement.settings_of(index) for index in range(len(placement.candidates))]
    for chosen, here in enumerate(tries):
        inputs, decided = make_inputs(here, sources, depth_01)
        geometry = Geometry.of(inputs, options)
        layers = geometry.native_layers
        if (layers.visible.any() and layers.edit.any()) or chosen + 1 == len(tries):
            break
    require_visible(inputs, layers)
    if placement is None:
        return Placed(here, geometry, decided, None)
    tell(placement, chosen)
    record = placement.record(chosen)
    if settings.depth is None:
        decided["depth"]["source"] = "instruction"
    return Placed(here, geometry, {**decided, "placement": record}, record)


def tell(placement: Placement, chosen: int) -> None:
    """Say where the object goes, and warn of what is not as the sentence wants it."""
    best = placement.candidates[chosen]
    box = ",".join(f"{value:.3f}" for value in best.location.box01_xyxy)
    logger.info(
        "place: --box %s --depth %.3f, by %s (%d of %d)",
        box, best.location.depth, placement.locator["folder"], chosen + 1, len(placement.candidates),
    )  # fmt: skip
    broken = [clause for clause, true in placement.satisfied(chosen).items() if not true]
    if broken:
        logger.warning("this place is not %s; --candidates 5 tries others", " and not ".join(broken))


def known_anchors(
    settings: ComposeSettings,
    models: Models,
    request: Request | None,
    rgb_u8: np.ndarray,
    depth_01: np.ndarray,
) -> dict[str, Place]:
    """Places of other things: those of the anchors file, and what the detector finds of the rest."""
    listed = {} if settings.anchors is None else read_anchors(settings.anchors, depth_01)
    names = () if request is None else ((request.target,) if request.replace else request.anchors)
    missing = [name for name in names if name not in listed]
    if missing and settings.detector is not None:
        listed |= detect_anchors(models.detector(settings.detector), missing, rgb_u8, depth_01, settings.sam)
    elif missing and locator_of(settings) == GEOMETRIC:
        raise ValueError(_unknown(missing, listed, settings.anchors))
    return listed


def _unknown(missing: list[str], listed: Mapping[str, Place], path: Path | None) -> str:
    what = f"--locator geometric does not know where the {' and the '.join(missing)} is: "
    if path is not None:
        return f"{what}{path} names {', '.join(listed)}; add it there, or give --detector FOLDER"
    form = f'{{"{missing[0]}": {{"box": [x1, y1, x2, y2]}}}}'
    return f"{what}give --anchors FILE.json ({form}) or --detector FOLDER"


def _understood(instruction: str, geometric: bool) -> Request | None:
    """The sentence taken apart; None for one that is left to a language model."""
    try:
        return parse_instruction(instruction)
    except InstructionError:
        if geometric:
            raise
        return None


def _aspect(cut: np.ndarray) -> float:
    """Width / height in pixels of the object in its image, mask (h, w)."""
    x0, y0, x1, y1 = bbox_of_mask(cut)
    return (x1 - x0) / (y1 - y0)


def _identity(settings: ComposeSettings) -> dict[str, Any]:
    """Which locator, detector and anchors file were used, by the hashes of their contents."""
    name = locator_of(settings)
    found: dict[str, Any] = {"folder": name}
    if name != GEOMETRIC:
        found["weights"] = {**hash_folder(name), **hash_folder(name, "locator.json")}
    if settings.detector is not None:
        found |= {
            "detector": settings.detector.as_posix(),
            "detector_weights": hash_folder(settings.detector),
        }
    if settings.anchors is not None:
        found |= {"anchors": settings.anchors.as_posix(), "anchors_sha256": file_sha256(settings.anchors)}
    return found
