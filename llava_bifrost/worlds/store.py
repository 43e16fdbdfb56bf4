"""The worlds of stored scenes: sampled again from their seeds, no pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tqdm import tqdm

from datasets.scenes.batch import SceneFacts
from datasets.scenes.describe import SceneOptions
from datasets.scenes.layout import sample_scene
from datasets.scenes.store import HEADER, read_shard
from datasets.sources.rendered import shard_files
from llava_bifrost.worlds.world import World


def scene_options(file: Path) -> SceneOptions:
    """The options with which the scenes of a shard were sampled, read from its header."""
    with safe_open(file, "numpy") as shard:
        plain = json.loads(json.loads(shard.metadata()[HEADER])["recipe"])["options"]
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
    return SceneOptions(**values)


def read_worlds(data: Path) -> list[World]:
    """The world of every scene of the shards in the folder `data`, about 7 ms each."""
    worlds: list[World] = []
    for file in tqdm(shard_files(data), desc="worlds", unit="shard"):
        options = scene_options(file)
        worlds += [world_of(fact, options) for fact in read_shard(file).facts]
    return worlds


def world_of(fact: SceneFacts, options: SceneOptions) -> World:
    """The world of one scene."""
    return World.of(sample_scene(fact.seed, options), fact)
