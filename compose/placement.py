"""From a sentence, if there is one, to a place and the inputs there: locator and compositor meet here.

A locator is a folder with a vision-language model (`llava_bifrost.predict`), or "geometric"
(`llava_bifrost.placement.placer`), which needs the places of the named objects: from a file or a detector.
"""

import json
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compose.models import Models
from compose.settings import DEPTH_MODES, ComposeSettings
from compose.sources import Sources, make_inputs
from datasets.geometry import bbox_of_mask, box_from_01
from datasets.inputs import PairOptions
from datasets.pairs import Geometry
from datasets.relations import Place
from ldm.files import file_sha256, hash_folder
from ldm.registry.models import detector_folder
from llava_bifrost.language.answer import Candidate, satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.placement.placer import Item
from llava_bifrost.propose import as_json, propose
from llava_bifrost.settings import GEOMETRIC, WITH_SENTENCE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    settings: ComposeSettings
    request: Request | None  # None: a free sentence that only the language model understood
    anchors: dict[str, Place]  # known places of other objects
    candidates: list[Candidate]  # best first
    locator: dict[str, Any]  # which one, with hashes

    def settings_of(self, index: int) -> ComposeSettings:
        """The settings with box and depth of a proposal instead of the sentence; they need no locator."""
        location = self.candidates[index].location
        changes: dict[str, Any] = {"instruction": None, **WITH_SENTENCE}
        if self.request is not None and self.request.replace and self.settings.mode == "place":
            changes["mode"] = "replace"
        depth = self.settings.depth or location.extent or (location.d,)
        return replace(self.settings, **changes, box=location.box01_xyxy, depth=depth)

    def record(self, chosen: int) -> dict[str, Any]:
        """For recipe and report: the sentence, the known places, and every proposal.

        Its keys are in the order of a record that was read again, so that a replay writes the same bytes.
        """
        candidates = []
        for each in self.candidates:
            place, (far, near) = each.location, each.location.extent or (None, None)
            depths = {"depth": place.d, "far": far, "near": near}
            more = {"log_probability": each.log_probability, "score": each.score, "text": each.text}
            candidates.append({"box": place.box01_xyxy, **depths, **more})
        record = {
            "instruction": self.settings.instruction, "locator": self.locator,
            "anchors": as_json(self.anchors), "candidates": candidates,
            "chosen": chosen, "satisfied": self.satisfied(chosen)}  # fmt: skip
        return json.loads(json.dumps(record, sort_keys=True))

    def satisfied(self, index: int) -> dict[str, bool]:
        """Every clause of the sentence -> whether it holds, where the places of its objects are known."""
        if self.request is None or not set(self.request.anchors) <= self.anchors.keys():
            return {}
        return satisfies(self.candidates[index].location, self.request, self.anchors)


def locate(settings: ComposeSettings, models: Models, sources: Sources, depth_01: np.ndarray) -> Placement:
    """Ask the locator where the object goes. depth_01: (h, w) of the background.

    ValueError where the geometric locator cannot take the sentence apart or does not know where an object is.
    """
    name, sentence = settings.locator_name, settings.instruction or ""
    x0, y0, x1, y1 = bbox_of_mask(sources.cut)
    stage, image_u8 = sources.stage, sources.background.rgb_u8
    item = Item((x1 - x0) / (y1 - y0), settings.relative_size, stage.moved_from if stage else None)
    known = as_json(stage.places) if stage is not None and stage.places else settings.anchors
    found = propose(settings, sentence, image_u8, depth_01, known, item, models)
    locator: dict[str, Any] = {"folder": name}
    if name != GEOMETRIC:
        locator["weights"] = {**hash_folder(name), **hash_folder(name, "locator.json")}
    if settings.detector is not None:
        locator["detector"] = settings.detector.as_posix()
        folder = detector_folder(settings.detector)
        locator["detector_weights"] = hash_folder(folder) | hash_folder(folder, "*.pth")
    if settings.anchors is not None:
        locator["anchors"] = settings.anchors.as_posix()
        locator["anchors_sha256"] = file_sha256(settings.anchors)
    return Placement(settings, *found, locator)


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
            unseen = "nothing of the object would be visible"
            raise ValueError(f"--box {box} does not meet the target mask: {unseen}")
        x0, y0, x1, y1 = map(round, box_from_01(decided["box"], depth_01.shape))
        there = depth_01[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        far, near = inputs.depth_range
        raise ValueError(
            f"nearer objects hide the object completely: at --box {box} the background's depth is "
            f"{there.min():.3f} to {there.max():.3f}, the object's {far:.3f} to {near:.3f} (1 = nearest); "
            "raise --depth or move --box"
        )
    if placement is None:
        return tries[chosen], geometry, decided
    location, record = placement.candidates[chosen].location, placement.record(chosen)
    box, rank = ",".join(f"{value:.3f}" for value in location.box01_xyxy), f"{chosen + 1} of {len(tries)}"
    folder = placement.locator["folder"]
    logger.info("place: --box %s --depth %.3f, by %s (%s)", box, location.d, folder, rank)
    if broken := [clause for clause, holds in record["satisfied"].items() if not holds]:
        logger.warning("this place is not %s; --candidates 5 tries others", " and not ".join(broken))
    if settings.depth is None:
        decided["depth"]["source"] = "instruction"
    return tries[chosen], geometry, {**decided, "placement": record}
