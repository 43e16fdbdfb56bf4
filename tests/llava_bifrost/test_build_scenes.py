"""Questions from rendered scenes: every answer is exact, every image the right one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.relations import Place
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import read_shard, render_shards
from ldm.images import read_image
from llava_bifrost.build_dataset.files import build_questions
from llava_bifrost.build_dataset.scenes import SceneSource
from llava_bifrost.language.answer import parse_answer, satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.settings import ScenesBuild


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    render_shards(StoreSettings(out=out, count=10, size=(48, 48), reference_size=(16, 16)))
    return out


def test_rendered_scenes_give_exact_answers(scenes: Path, tmp_path: Path) -> None:
    given = ScenesBuild(scenes=scenes, out=tmp_path / "set", decimals=2, visible=0.3)
    report = build_questions(SceneSource, given)
    assert report is not None
    assert report["kinds"]["place"] >= 30
    assert report["kinds"]["replace"] >= 8
    shard = read_shard(next(scenes.glob("*.safetensors")))
    new, rows = 0, {f"{fact.seed:014d}": row for row, fact in enumerate(shard.facts)}
    for record in json.loads((given.out / "dataset.json").read_text()):
        row, meta = rows[record["id"][:14]], record["meta"]
        fact, asked = shard.facts[row], meta["request"]
        request = Request(asked["target"], tuple(map(tuple, asked["relations"])), asked["replace"])
        anchors = {name: Place(tuple(one["box01_xyxy"]), one["d"], one["far"], one["near"])
                   for name, one in meta["anchors"].items()}  # fmt: skip
        where = Place.of(tuple(meta["box01_xyxy"]), meta["depth"], meta["far"], meta["near"])
        assert all(satisfies(where, request, anchors).values())
        shown = read_image(given.out / "images" / record["image"]).rgb_u8
        if asked["target"] not in fact.names:  # something new
            assert "-n" in record["id"]
            assert np.array_equal(shown, shard.without_u8[row])
            assert fact.names[fact.removed] not in anchors
            new += 1
            continue
        solid = fact.names.index(asked["target"])
        answer = parse_answer(record["conversations"][1]["value"])
        assert answer.box01_xyxy == pytest.approx(fact.boxes01[solid], abs=0.006)
        assert answer.d == pytest.approx(fact.depths[solid][0], abs=0.006)
        if asked["replace"]:
            assert np.array_equal(shown, shard.image_u8[row])
            continue
        assert solid == fact.removed
        assert np.array_equal(shown, shard.without_u8[row])
        said = {(fact.names[b], word) for a, word, b in fact.relations if a == solid}
        for phrase, (name, *_) in request.clauses:
            if phrase in ("on", "behind", "in front of"):
                assert (name, phrase) in said
    assert new >= 10


def test_scenes_are_asked_the_same_again(scenes: Path, tmp_path: Path) -> None:
    texts = []
    for name in "ab":
        given = ScenesBuild(scenes=scenes, out=tmp_path / name, questions=2, seed=5)
        build_questions(SceneSource, given)
        texts.append((given.out / "dataset.json").read_bytes())
    assert texts[0] == texts[1]


def test_parts_of_scenes_have_no_new_places(tmp_path: Path) -> None:
    render_shards(StoreSettings(out=tmp_path, count=1, size=(32, 32), window="object"))
    with pytest.raises(ValueError, match="set placements to 0"):
        SceneSource(ScenesBuild(scenes=tmp_path, out=tmp_path / "set"))
    given = ScenesBuild(scenes=tmp_path, out=tmp_path / "set", placements=0)
    assert (build_questions(SceneSource, given) or {})["items"] == 1


def test_a_folder_without_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards of rendered scenes"):
        SceneSource(ScenesBuild(scenes=tmp_path, out=tmp_path / "set"))
