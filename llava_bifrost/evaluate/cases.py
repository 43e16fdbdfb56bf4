"""Questions to measure a locator on: of held-out rendered scenes, or of a dataset file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.relations import Place
from datasets.scenes.store import StoreSettings, read_shard, render_shards
from ldm.images import read_image
from llava_bifrost.evaluate.measures import Case
from llava_bifrost.language.answer import Location, Request
from llava_bifrost.worlds.questions import Question, place_questions, replace_questions
from llava_bifrost.worlds.store import world_of
from llava_bifrost.worlds.world import World

REFERENCE = (16, 16)  # the reference views are not needed


def scene_cases(folder: Path, scenes: int, seed: int = 0) -> list[Case]:
    """One question that places something and one that replaces something per held-out scene.

    Scenes that are not in `folder` yet are rendered. Every other scene is asked about as it is, the rest
    without their removed solid.
    """
    settings = StoreSettings(
        out=folder, count=-(-scenes // 256) * 256, split="eval", reference_size=REFERENCE
    )
    cases: list[Case] = []
    for path in render_shards(settings):
        shard = read_shard(path)
        for i, fact in enumerate(shard.facts):
            if len(cases) >= 2 * scenes:
                return cases
            world = world_of(fact, settings)
            without = bool(i % 2)
            world = world.without(fact.removed) if without else world
            image = (shard.without_u8 if without else shard.image_u8)[i]
            rng = np.random.default_rng((seed, fact.seed))
            for question in (*place_questions(world, rng, 1), *replace_questions(world, rng, 1)):
                cases.append(_case(question, world, image))
    return cases


def _case(question: Question, world: World, image_u8: np.ndarray) -> Case:
    names = world.solids.names
    anchors = {names[i]: world.place(i) for i in world.anchors}
    return Case(str(world.seed), image_u8, question.request, question.answer, anchors, world)


def dataset_cases(path: Path, most: int) -> list[Case]:
    """The first `most` records of a LLaVA conversation file (JSON list) with the metadata of build_dataset.

    Images lie beside the file or in its folder images/. ValueError names what is missing.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path}: must hold a list of records")
    return [_read(path, number, record) for number, record in enumerate(records[:most])]


def _read(path: Path, number: int, record: Any) -> Case:
    try:
        meta = record["meta"]
        asked = meta["request"]
        request = Request(asked["target"], tuple(map(tuple, asked["relations"])), asked["replace"])
        depths = (meta["depth"], meta["far"], meta["near"])
        truth = Location(tuple(meta["box01_xyxy"]), *depths)
        anchors = {
            name: Place(tuple(place["box01_xyxy"]), place["d"], place["far"], place["near"])
            for name, place in meta["anchors"].items()
        }
        beside, within = path.parent / record["image"], path.parent / "images" / record["image"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: record {number} lacks {error}; build it with llava_bifrost.build_dataset"
        ) from None
    image = read_image(within if within.is_file() else beside).rgb_u8
    return Case(str(record.get("id", number)), image, request, truth, anchors)
