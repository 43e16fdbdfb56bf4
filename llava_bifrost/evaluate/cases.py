"""Questions to measure a locator on: of held-out rendered scenes, or of a dataset file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.scenes.store import StoreSettings, read_shard, render_shards
from ldm.images import read_image
from llava_bifrost.dataset import read_records
from llava_bifrost.evaluate.measures import Case
from llava_bifrost.worlds.questions import place_questions, replace_questions
from llava_bifrost.worlds.world import world_of

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
            world, image = world_of(fact, settings), shard.image_u8[i]
            if i % 2:
                world, image = world.without(fact.removed), shard.without_u8[i]
            anchors = {world.solids.names[j]: world.place(j) for j in world.anchors}
            rng = np.random.default_rng((seed, fact.seed))
            for question in (*place_questions(world, rng, 1), *replace_questions(world, rng, 1)):
                cases.append(Case(str(world.seed), image, question.request, question.answer, anchors, world))
    return cases


def dataset_cases(path: Path, most: int) -> list[Case]:
    """The first `most` records of a dataset file of build_dataset. ValueError names what is missing."""
    cases = []
    for record in read_records(path)[:most]:
        if record.request is None or not set(record.request.anchors) <= record.anchors.keys():
            raise ValueError(f"{path}: record {record.id} lacks its request or the places of its anchors; "
                             "build it with llava_bifrost.build_dataset")  # fmt: skip
        image_u8 = read_image(record.image).rgb_u8
        cases.append(Case(record.id, image_u8, record.request, record.location, record.anchors))
    return cases
