"""Rejected samples: the objects of an image, the items of a source, the sources of a mixture."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cldm.training.data import PairData
from cldm.training.records import RejectionCounter
from datasets import examples
from datasets.base import MOVING, STILL, Rejected
from datasets.examples import ITEMS, PairDataset, RunBatches
from datasets.inputs import Inputs, PairOptions
from datasets.pairs import Pair, model_inputs
from datasets.sources.image_source import ImageSource, SourceConfig
from datasets.sources.readers import ObjectView, Rules, Tree
from datasets.sources.registry import DatasetsConfig, open_source
from ldm.images import write_depth
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.datasets import trees
from tests.datasets.test_sources_real import settings

TINY = PairOptions(size=(16, 16), reference_size=16)
RATES = (0.05, 0.3, 0.9)


class Choosy:
    """A source that accepts a fraction of what is drawn from it; its images are of one gray."""

    def __init__(self, rate: float, items: int = 500, gray: int = 9, dynamics: int = STILL) -> None:
        self.rate, self.items, self.gray, self.dynamics = rate, items, gray, dynamics
        self.tried: list[int] = []

    def __len__(self) -> int:
        return self.items

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        self.tried.append(index)
        if rng.random() >= self.rate:
            raise Rejected(f"too plain: image {index}")
        image_u8, mask = np.full((24, 24, 3), self.gray, np.uint8), np.zeros((24, 24), bool)
        mask[6:18, 6:18] = True
        depth_01 = np.zeros((24, 24), np.float32)
        return Inputs(image_u8, mask, image_u8, depth_01, target_mask=mask, mode="inpaint")


def fake_trainer(names: list[str]) -> Any:
    return SimpleNamespace(is_global_zero=True, datamodule=SimpleNamespace(names=names))


def count(counter: RejectionCounter, samples: list, names: list[str]) -> None:
    counter.on_train_batch_end(fake_trainer(names), None, None, PairData.collate(samples))


def test_a_mixture_of_choosy_sources_gives_every_example_and_its_fractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Choosy(rate) for rate in RATES]
    pair = PairDataset(Choosy(1), TINY, seed=0)[0]
    monkeypatch.setattr(
        examples, "build_pair", lambda *given: Pair(**{f.name: getattr(pair, f.name) for f in fields(Pair)})
    )
    dataset = PairDataset(sources, TINY, seed=0, weights=(2, 1, 1))
    counter = RejectionCounter(tmp_path / "refusals.json", 2000)
    for start in range(0, 2000, 50):
        count(counter, [dataset[k] for k in range(start, start + 50)], ["a", "b", "c"])
    given = [counter.accepted[k] / 2000 for k in range(3)]
    assert sum(counter.accepted.values()) == 2000
    assert given == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert counter.replaced[0] <= 16  # of 1000: (1 - 0.05)^100 = 0.6 %, and four standard deviations
    tries = sum(counter.rejected[0].values()) + counter.accepted[0]
    assert counter.accepted[0] / tries == pytest.approx(0.05, abs=0.01)


def test_another_source_takes_the_place_by_the_fractions_and_is_counted(tmp_path: Path) -> None:
    sources = [Choosy(0, gray=0), Choosy(1, gray=60), Choosy(1, gray=120, dynamics=MOVING)]
    dataset = PairDataset(sources, TINY, seed=1, weights=(2, 1, 3))
    counter = RejectionCounter(tmp_path / "refusals.json", 10**6)
    samples = [dataset[k] for k in range(200)]
    count(counter, samples, ["a", "b", "c"])
    planned = Counter(one.planned for one in samples)
    assert counter.replaced == {0: planned[0], 1: 0, 2: 0}
    assert sum(counter.rejected[0].values()) == ITEMS * planned[0]
    moved = Counter(one.source for one in samples if one.planned == 0)
    assert moved[2] / moved[1] == pytest.approx(3, rel=0.6)
    for one in samples:
        assert one.dynamics == sources[one.source].dynamics
        assert torch.unique(one.background_pm1).tolist() == pytest.approx(
            [sources[one.source].gray / 127.5 - 1]
        )
    counter.on_fit_end(fake_trainer(["a", "b", "c"]), None)
    assert f'"replaced": {planned[0]}' in (tmp_path / "refusals.json").read_text()


@pytest.mark.parametrize("items", [1, 7, ITEMS, 5000])
def test_other_items_are_tried_before_one_comes_again(items: int) -> None:
    source = Choosy(0, items)
    with pytest.raises(ValueError, match=f"example 3: all {2 * ITEMS} tries were rejected"):
        PairDataset(source, TINY, seed=2, stop_after=2 * ITEMS)[3]
    for half in (source.tried[:ITEMS], source.tried[ITEMS:]):
        times = Counter(half)
        assert len(times) >= min(items, ITEMS) - (items > ITEMS)
        assert max(times.values()) <= -(-ITEMS // items) + (items > ITEMS)
    assert source.tried[0] == PairDataset(source, TINY, seed=2).mixture(3)[1]


def test_an_error_names_items_and_reasons_but_not_all() -> None:
    with pytest.raises(ValueError, match=r"item 0: too plain: image 0; item 1: .*; item 2: [^;]*$"):
        PairDataset(Choosy(0, 3), TINY, seed=0)[0]
    with pytest.raises(ValueError, match=r"(item \d+: too plain: image \d+; ){5}\.\.\.$"):
        PairDataset(Choosy(0, 300), TINY, seed=0)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_example(workers: int) -> None:
    def dataset() -> PairDataset:
        return PairDataset([Choosy(0.02, gray=1), Choosy(0.3, gray=2)], TINY, seed=5, weights=(3, 1))

    straight = [dataset()[k] for k in range(12)]
    loader = DataLoader(
        dataset(), batch_sampler=RunBatches(4, 3), num_workers=workers, collate_fn=PairData.collate
    )
    batches = [{**batch, **model_inputs(batch)} for batch in loader]
    origins = [one for batch in batches for one in batch["origins"]]
    assert origins == [(one.planned, one.source, one.rejected) for one in straight]
    assert torch.equal(torch.cat([batch["detail_pm1"] for batch in batches]),
                       torch.stack([one.detail_pm1 for one in straight]))  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "stops"),
    [
        ([(0, 0, 3), (0, 0, 3)], False),  # an accepted one begins the count anew
        ([(0, 1, 3), (0, 1, 1)], True),
        ([(0, 1, 3), (1, 1, 0), (0, 0, 0), (0, 1, 3)], False),
        ([(0, 0, 4)], True),
    ],
)
def test_a_run_stops_only_when_a_source_accepts_nothing(
    tmp_path: Path, rows: list, stops: bool, caplog
) -> None:
    counter = RejectionCounter(tmp_path / "refusals.json", 4)
    origins = [(planned, source, ((0, "too plain", "item 4: too plain: image 4"),) * rejected)
               for planned, source, rejected in rows]  # fmt: skip
    batch, names = {"origins": origins}, fake_trainer(["sam", "lvis"])
    if not stops:
        counter.on_train_batch_end(names, None, None, batch)
        return
    told = r"sam has accepted nothing in 4 tries \(rejected in all: 4 x too plain\), the last one item 4: too"
    with pytest.raises(ValueError, match=told):
        counter.on_train_batch_end(names, None, None, batch)
    again = RejectionCounter(tmp_path / "other.json", 4)
    again.load_state_dict(counter.state_dict())
    assert again.state_dict() == counter.state_dict()
    again.load_state_dict({"accepted": {0: 2}, "refused": {}})  # of an earlier version
    assert again.in_a_row == {}


def test_a_damaged_file_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counter = RejectionCounter(tmp_path / "refusals.json", 100)
    wrong = ((0, "file", "item 1: a.jpg is empty"), (0, "too plain", "item 2: too plain"))
    counter.on_train_batch_end(fake_trainer(["sam"]), None, None, {"origins": [(0, 0, wrong)] * 3})
    assert caplog.messages == ["sam, skipped: item 1: a.jpg is empty"]


def drawn_masks(source: ImageSource, times: int) -> Counter[int]:
    """How often each object was taken, by the pixels of its mask; 0: the item was rejected."""
    found: Counter[int] = Counter()
    for k in range(times):
        try:
            found[int(source.example(0, np.random.default_rng(k)).target_mask.sum())] += 1
        except Rejected:
            found[0] += 1
    return found


class ManyObjects(SourceConfig):
    """One image of four objects, of which the rules accept two."""

    home: Path

    def read(self) -> list:
        return [("room",)]

    def views(self, item: Any):
        def block(side: int) -> np.ndarray:
            mask = np.zeros(trees.SIZE, bool)
            mask[10 : 10 + side, 10 : 10 + side] = True
            return mask

        for side in (4, 40, 50, 119):
            yield ObjectView(self.home / "a.jpg", partial(block, side), Tree(self.home, self.home))


def test_objects_of_an_image_are_drawn_among_the_acceptable_ones(tmp_path: Path) -> None:
    trees.save_jpeg(tmp_path / "a.jpg", trees.image(0)[0])
    write_depth(tmp_path / "a.png", np.eye(*trees.SIZE, dtype=np.float32))
    config = ManyObjects()
    object.__setattr__(config, "home", tmp_path)
    found = drawn_masks(ImageSource(config), 60)
    assert set(found) == {1600, 2500}
    assert 18 <= found[1600] <= 42
    object.__setattr__(config, "rules", Rules(area=(0.5, 0.6)))
    with pytest.raises(Rejected, match="reference too (small|large): covers"):
        ImageSource(config).example(0, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["sam", "lvis", "vipseg", "mose", "youtube_vos", "coco_panoptic"])
def test_an_unfit_object_beside_a_fit_one_rejects_no_image(name: str, tmp_path: Path, monkeypatch) -> None:
    """Every annotated source whose images hold a second object that is far too small."""
    trees.TREES[name](tmp_path / "data")
    home, ids = tmp_path / "data", np.zeros(trees.SIZE, np.uint8)
    ids[0:16, 0:16] = 1
    if name == "youtube_vos":
        root = home / "YouTubeVOS/train"
        document = json.loads((root / "meta.json").read_text())
        for video in document["videos"].values():
            video["objects"]["4"] = {"frames": [f"{k:05d}" for k in range(4)]}  # shown by no pixel
        trees.save_json(root / "meta.json", document)
    elif name == "mose":
        for path in (home / "MOSE/train/Annotations").rglob("*.png"):
            trees.save_ids(path, np.where(ids, 2, trees.image(int(path.stem))[1]).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    more = [f"{name}.min_pixels=1"] if name in ("sam", "lvis", "coco_panoptic") else []
    source = open_source(load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", more), name)
    masks = {int(source.example(k % 3, np.random.default_rng(k)).target_mask.sum()) for k in range(24)}
    assert min(masks) > 0.01 * trees.SIZE[0] * trees.SIZE[1]


@pytest.mark.parametrize("name", ["vipseg", "mose"])
def test_slices_of_real_videos_give_every_example(name: str, test_data: Path, tmp_path: Path) -> None:
    config = load_config(
        DatasetsConfig, ROOT / "configs/datasets.yaml", settings(test_data / "data", tmp_path / "depth")
    )
    dataset = PairDataset(open_source(config, name), replace(TINY, size=(64, 64)), seed=0)
    samples = [dataset[k] for k in range(12)]
    assert all(one.edit_mask.any() for one in samples)
    assert sum(len(one.rejected) for one in samples) < 60
