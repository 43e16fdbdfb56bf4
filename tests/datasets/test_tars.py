"""Tar shards: the examples of every source, written once, equal to those of its files, at any place."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.base import Rejected
from datasets.examples import PairDataset, RunBatches
from datasets.inputs import PairOptions
from datasets.sources.image_source import ImageSource
from datasets.sources.registry import DatasetsConfig, open_source
from datasets.tars import TarSettings, build_app, write_tars
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.datasets import trees

CONFIG = ROOT / "configs/datasets.yaml"
SMALL = PairOptions(size=(64, 64), reference_size=56)
OVERRIDES = ("sam.min_pixels=3000",)
STILL = ("lvis", "coco_panoptic", "sam", "saliency")  # any object of an image is reference and target
OTHERS = sorted(set(trees.TREES) - set(STILL) - {"folder"})


def settings(source: str, **more: Any) -> TarSettings:
    return TarSettings(
        **{"source": source, "out": Path("tars"), "config": CONFIG, "overrides": OVERRIDES, **more}
    )


@cache
def configuration(*overrides: str) -> DatasetsConfig:
    return load_config(DatasetsConfig, CONFIG, overrides)


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    monkeypatch.setattr(
        "datasets.tars.load_config", lambda schema, path, overrides: configuration(*overrides)
    )


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the tree of a source and its shards: the source of files, then that of shards."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, **more: Any) -> tuple[ImageSource, ImageSource]:
        trees.TREES[name](tmp_path / "data")
        report = write_tars(settings(name, **{"items": 2, **more}))
        files = open_source(configuration(*OVERRIDES), name)
        assert report["written"] == len(files)
        return files, opened(name)

    return write


def opened(name: str, *more: str) -> ImageSource:
    return open_source(configuration(*OVERRIDES, f"tars.{name}=tars", *more), name)


def example(source: ImageSource, index: int, *key: int) -> Any:
    try:
        return source.example(index, np.random.default_rng(key))
    except Rejected as error:
        return str(error)


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    for field in fields(first) if not isinstance(first, str) else ():
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name


@pytest.mark.parametrize("name", STILL)
def test_examples_of_shards_are_those_of_the_files(written, name: str) -> None:
    files, tars = written(name)
    shutil.rmtree("data")  # nothing is read from there any more
    (tars_only, options) = opened(name), SMALL
    tars_only.options = tars.options = options
    for index in range(len(tars)):
        for key in range(4):
            assert_same(example(tars, index, key), example(tars_only, index, key))
    trees.TREES[name](Path("data"))
    files.options = options
    for index in reversed(range(len(files))):
        for key in range(4):
            assert_same(example(files, index, key), example(tars, index, key))


@pytest.mark.parametrize("name", OTHERS)
def test_drawn_pairs_of_other_sources_are_pairs_of_their_items(written, name: str) -> None:
    files, tars = written(name, draws=3)
    assert tars.dynamics == files.dynamics
    assert tars.rules == files.rules
    for index in range(len(files)):
        bytes_of = {view.image.read_bytes(): view for view in files.views(index)}
        pairs = tars.config.pairs(tars.items[index])
        assert pairs
        for view in (view for pair in pairs for view in pair):
            there = bytes_of[view.data]
            assert (view.tree is None) == (there.tree is None)
            assert view.mask().shape == there.mask().shape
            if view.tree is not None:
                assert view.depth_data == there.depth_path.read_bytes()
        made = example(tars, index, 1)
        assert isinstance(made, str) or made.background_depth_01.shape == made.background_u8.shape[:2]


def test_a_shard_follows_the_convention_of_webdataset(written) -> None:
    files, _ = written("lvis")
    with tarfile.open("tars/shard-00000.tar") as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar} == {0}  # the same bytes whenever it is written
        facts = json.loads(tar.extractfile(names[0]).read())
        picture = Image.open(io.BytesIO(tar.extractfile(names[1]).read()))
    assert names == [f"{n:08d}.{ending}" for n in range(2) for ending in ("json", "0.jpg", "0.depth.png")]
    assert facts["name"] == files.name(0)
    assert picture.size == trees.SIZE[::-1]


def test_training_goes_on_at_any_example(written) -> None:
    _, tars = written("saliency")
    whole, again = (PairDataset(source, SMALL, seed=3) for source in (tars, opened("saliency")))
    order = [number for batch in RunBatches(batches=6, batch=2) for number in batch]
    later = [number for batch in RunBatches(6, 2, stands_at=lambda: 4) for number in batch]
    assert later == order[8:]
    for number in reversed(later):
        one, two = whole[number], again[number]
        assert np.array_equal(one.target_pm1, two.target_pm1)
        assert np.array_equal(one.depth_01, two.depth_01)
    items = [whole.mixture(k)[1] for k in range(len(tars))]
    assert sorted(items) == list(range(len(tars)))
    assert items != sorted(items) or len(items) < 3


def test_what_is_there_stays_and_a_torn_shard_is_written_again(written, monkeypatch) -> None:
    written("lvis", items=1)

    def state() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("tars").iterdir()}

    first = state()
    Path("tars/shard-00001.npy").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.tar is not finished; the same `python"):
        opened("lvis")
    argv = ["--source", "lvis", "--out", "tars", "--config", str(CONFIG), "--items", "1"]
    assert run_app(build_app, [*argv, "sam.min_pixels=3000"]) == 0
    after = state()
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in first.items()
    }
    assert {name.partition(".")[0] for name in first if first[name] != after[name]} == {"shard-00001"}


def test_shards_of_several_machines_are_those_of_one(written) -> None:
    written("lvis", items=1)
    whole = {path.name: path.read_bytes() for path in Path("tars").iterdir()}
    for part in ("1/2", "0/2"):
        write_tars(settings("lvis", out=Path("parts"), items=1, shard=part))
    assert {path.name: path.read_bytes() for path in Path("parts").iterdir()} == whole


def test_items_that_cannot_be_used_are_left_out_and_named(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    trees.TREES["lvis"](tmp_path / "data")
    depths = sorted(Path("data").rglob("*depth*/*.png"))
    depths[0].unlink()
    report = write_tars(settings("lvis"))
    assert len(report["left_out"]) == 1
    assert "does not exist; `python -m ldm.precompute_depth" in report["left_out"][0]
    assert report["written"] == len(opened("lvis")) == len(depths) - 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tars.lvis=nowhere"], "^lvis: nowhere holds no shards; `python -m datasets.tars --source lvis`"),
        (["tars.sam=tars"], "^sam: tars holds the source lvis"),
        (["tars.lvis=tars", "indexes.lvis=a.json"], "an index counts when tar shards are written"),
        (["tars.lviss=tars"], "tars: unknown source 'lviss'; did you mean 'lvis'"),
    ],
)
def test_what_cannot_be_read_is_one_line(written, overrides: list[str], message: str) -> None:
    written("lvis")
    name = "sam" if "tars.sam=tars" in overrides else "lvis"
    with pytest.raises(ValueError, match=message):
        open_source(load_config(DatasetsConfig, CONFIG, overrides), name)


def test_other_settings_and_damage_are_refused(written) -> None:
    written("lvis")
    with pytest.raises(ValueError, match=r"tars was begun with another items, shards \("):
        write_tars(settings("lvis", items=1))
    path = Path("tars/shard-00000.tar")
    path.write_bytes(path.read_bytes()[:-20000].ljust(path.stat().st_size, b"\1"))
    source = opened("lvis")
    with pytest.raises(ValueError, match=r"shard-00000.tar: example 0000000\d is damaged"):
        [example(source, index, 0) for index in range(len(source))]


def test_rendered_scenes_are_in_shards_already(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("datasets.tars.open_source", lambda *given: object())
    argv = ["--source", "scenes", "--out", str(tmp_path / "a"), "--config", str(CONFIG)]
    assert run_app(build_app, argv) == 2
    assert "scenes: rendered scenes are stored in shards already" in capsys.readouterr().err
