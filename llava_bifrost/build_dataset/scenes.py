"""Questions from rendered scenes: the image without the object, its box, depth and relations are exact.

Where the full view was rendered, further questions place something new on the same image, at a place where
it stands, fits and touches nothing (world_questions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.relations import DEPTH_STEP, Place
from datasets.scenes.batch import SceneFacts
from datasets.scenes.describe import SceneOptions
from datasets.scenes.store import SCENES_PER_SHARD, Shard, read_facts, read_shard
from datasets.sources.readers import folder
from datasets.sources.rendered import shard_files
from ldm.settings.config import check_settings, setting, to_plain
from ldm.shards import shard_of
from llava_bifrost.build_dataset.files import OutputSettings
from llava_bifrost.build_dataset.records import Built, Sample, rounded_place
from llava_bifrost.build_dataset.relations import RelationRules, choose_facts, true_facts, word_request
from llava_bifrost.language.answer import Location, satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.worlds.questions import place_questions
from llava_bifrost.worlds.world import scene_options, world_of

TRIES = 4  # per question: the same sentence is not asked twice
DECISIVE = ("questions", "replace", "placements", "visible", "area", "relations")


@dataclass(frozen=True, kw_only=True)
class ScenesBuild(OutputSettings):
    """Questions from rendered scenes."""

    scenes: Path = setting(help="folder of shards made by `python -m datasets.scenes render`")
    questions: int = setting(3, low=0, help="most different Place questions of a scene")
    replace: int = setting(1, low=0, help="Replace questions of a scene, about solids that stand free")
    placements: int = setting(3, low=0, help="Place questions of a scene about new things; full views only")
    visible: float = setting(0.4, low=0, high=1, help="least visible share of a solid that is named")
    area: float = setting(0.004, low=0, high=1, help="least share of the image of a solid that is named")
    relations: RelationRules = setting(
        RelationRules(reach=0.5, depth_step=DEPTH_STEP, same_depth=1), help="what is said of a solid"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        shard_of(self.shard)


class SceneSource:
    """Scenes in the chunks of their files."""

    def __init__(self, settings: ScenesBuild) -> None:
        self.settings = settings
        self.files = shard_files(folder(settings.scenes, "scenes"))
        self.facts = [read_facts(path) for path in self.files]
        short = [path for path, facts in zip(self.files[:-1], self.facts, strict=False)
                 if len(facts) != SCENES_PER_SHARD]  # fmt: skip
        if short:
            raise ValueError(f"{short[0]} holds fewer than {SCENES_PER_SHARD} scenes; render the folder anew")
        self.options = scene_options(self.files[0])
        if settings.placements and self.options.window != "full":
            raise ValueError(f"placements: {settings.scenes} shows parts of scenes; set placements to 0")

    def names(self) -> list[str]:
        return [scene_name(fact.seed) for facts in self.facts for fact in facts]

    def chunk(self) -> int:
        return SCENES_PER_SHARD

    def recipe(self) -> dict[str, Any]:
        plain, seeds = to_plain(self.settings), [facts[0].seed for facts in self.facts]
        return {"source": "scenes", "seeds": seeds, **{key: plain[key] for key in DECISIVE}}

    def prepare(self, indices: Sequence[int]) -> Shard:
        return read_shard(self.files[indices[0] // SCENES_PER_SHARD])

    def finish(self, prepared: Shard) -> list[Built]:
        built = []
        for row, fact in enumerate(prepared.facts):
            without_u8 = prepared.without_u8[row]
            one = scene_questions(fact, prepared.image_u8[row], without_u8, self.settings)
            more = new_things(fact, without_u8, self.options, self.settings)
            built.append(Built(one.name, [*one.samples, *more], one.dropped))
        return built


def scene_name(seed: int) -> str:
    """Of the item and its images; sorts like the seeds."""
    return f"{seed:014d}"


def solid_place(fact: SceneFacts, index: int) -> Place:
    """Where a solid is, to the digits of the metadata."""
    return rounded_place(fact.boxes01[index], *fact.depths[index])


def scene_questions(
    fact: SceneFacts, image_u8: np.ndarray, without_u8: np.ndarray, settings: ScenesBuild
) -> Built:
    """Place questions on the scene without the removed solid, Replace questions on the whole scene.

    image_u8, without_u8: (h, w, 3)
    """
    rng, name = np.random.default_rng((settings.seed, fact.seed)), scene_name(fact.seed)
    named = [index for index in range(len(fact.names)) if _is_seen(fact, index, settings)]
    anchors = {fact.names[index]: solid_place(fact, index) for index in named if index != fact.removed}
    requests = place_requests(fact, anchors, settings, rng)
    where = Location.of(solid_place(fact, fact.removed))
    samples = []
    for count, request in enumerate(requests):
        asked = {anchor: anchors[anchor] for anchor in request.anchors}
        samples.append(
            Sample(f"{name}-{count}", f"{name}_without.png", without_u8, request, where, asked, "scenes")
        )
    free = [index for index in named if fact.movable[index]]
    for count, index in enumerate(rng.permutation(free)[: settings.replace]):
        there = Location.of(solid_place(fact, int(index)))
        asked_for = Request(fact.names[index], replace=True)
        samples.append(Sample(f"{name}-r{count}", f"{name}.png", image_u8, asked_for, there, {}, "scenes"))
    return Built(name, samples, [] if requests else ["no relation: no solid that is seen is related"])


def new_things(
    fact: SceneFacts, without_u8: np.ndarray, options: SceneOptions, settings: ScenesBuild
) -> list[Sample]:
    """Questions that place things which the scene never had on the image (h, w, 3) without the solid."""
    if not settings.placements:
        return []
    world, name = world_of(fact, options).without(fact.removed), scene_name(fact.seed)
    asked = place_questions(world, np.random.default_rng((settings.seed, fact.seed, 1)), settings.placements)
    samples = []
    for count, one in enumerate(asked):
        anchors = {fact.names[index]: solid_place(fact, index) for index in one.named}
        if all(satisfies(one.answer, one.request, anchors).values()):  # also to the digits that are kept
            image = f"{name}_without.png"
            samples.append(
                Sample(f"{name}-n{count}", image, without_u8, one.request, one.answer, anchors, "scenes")
            )
    return samples


def _is_seen(fact: SceneFacts, index: int, settings: ScenesBuild) -> bool:
    return fact.visible[index] >= settings.visible and fact.area[index] >= settings.area


def place_requests(
    fact: SceneFacts, anchors: dict[str, Place], settings: ScenesBuild, rng: np.random.Generator
) -> list[Request]:
    """Up to `questions` different instructions that are true of the removed solid."""
    known = {name: _known(fact, fact.names.index(name)) for name in anchors}
    facts = true_facts([solid_place(fact, fact.removed)], anchors, settings.relations, known)
    found: dict[Request, None] = {}
    for _ in range(TRIES * settings.questions if facts else 0):
        if len(found) == settings.questions:
            break
        chosen = choose_facts(facts, settings.relations.most, rng)
        found[word_request(fact.names[fact.removed], chosen, rng)] = None
    return list(found)


def _known(fact: SceneFacts, anchor: int) -> frozenset[str]:
    """What is true of the removed solid and another one; what stands on a thing is also above it."""
    words = {word for a, word, b in fact.relations if (a, b) == (fact.removed, anchor)}
    return frozenset(words | ({"above"} if "on" in words else set()))
