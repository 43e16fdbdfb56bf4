"""The compositor's trainer on a datasets file of real images: opening it, counting refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cldm.training.run import train
from cldm.training.settings import DataConfig, RunConfig, TrainerConfig
from ldm.images import write_mask
from ldm.settings.config import load_config
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train_run import with_trainer
from tests.conftest import ROOT
from tests.datasets import trees


@pytest.fixture(scope="module")
def datasets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own images, one of them with a mask that covers nearly all of it, and MOSE."""
    home = tmp_path_factory.mktemp("home")
    for name in ("folder", "mose"):
        trees.TREES[name](home / "data")
    masks = sorted((home / "data/mine/masks").iterdir())
    write_mask(masks[0], np.ones(trees.SIZE, bool))
    file = home / "mine.yaml"
    file.write_text(
        f"weights: {{folder: 3, mose: 1}}\n"
        f"folder: {{root: {home}/data/mine}}\n"
        f"mose: {{images: {home}/data/MOSE/train/JPEGImages, masks: {home}/data/MOSE/train/Annotations, "
        f"depth: {home}/data/MOSE/train/depth}}\n"
    )
    return file


def settings(out: Path, datasets_file: Path) -> RunConfig:
    return RunConfig(
        out=out, network=SMALL, pair=SMALL_CONFIG.pair, sampling=SMALL_CONFIG.sampling,
        data=DataConfig(datasets=datasets_file, batch=2, workers=0),
        trainer=TrainerConfig(max_steps=6, accelerator="cpu", precision="32-true", save_every=3),
    )  # fmt: skip


def test_refusals_are_counted_also_over_an_interruption(datasets_file: Path, tmp_path: Path) -> None:
    whole = with_trainer(settings(tmp_path / "whole", datasets_file), max_steps=4)
    train(whole)
    found = json.loads((tmp_path / "whole/refusals.json").read_text())
    assert list(found) == ["folder", "mose"]
    assert sum(one["accepted"] for one in found.values()) == 8
    assert found["folder"]["refused"]
    part = replace(whole, out=tmp_path / "part")
    train(with_trainer(part, max_steps=2))
    train(part)
    assert json.loads((tmp_path / "part/refusals.json").read_text()) == found


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stops_when_a_source_accepts_nothing(datasets_file: Path, tmp_path: Path, workers: int) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text(f"base: {datasets_file}\nmose: {{rules: {{area: [0.9, 1.0]}}}}\n")
    config = settings(tmp_path / "run", strict)
    config = replace(config, data=replace(config.data, stop_after=250, workers=workers))
    told = r"mose has accepted nothing in 250 tries \(rejected in all: 250 x reference too small\), the last"
    with pytest.raises(ValueError, match=told):
        train(replace(config, trainer=replace(config.trainer, max_steps=40)))
    found = json.loads((tmp_path / "run/refusals.json").read_text())
    assert found["mose"] == {"accepted": 0, "replaced": 2, "refused": {"reference too small": 250}}
    assert found["folder"]["accepted"] > 4


@pytest.mark.parametrize("real", [False, True])
def test_videos_of_many_unfit_ids_train(real: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    home = tmp_path / "data"
    if real:  # most ids of these slices are no acceptable object
        data = request.getfixturevalue("test_data") / "data"
        paths = {"vipseg": (data / "vipseg", "panomasks"), "mose": (data / "mose/train", "Annotations")}
    else:
        for name in ("vipseg", "mose"):
            trees.TREES[name](home)
        paths = {"vipseg": (home / "VIPSeg", "panomasksRGB"), "mose": (home / "MOSE/train", "Annotations")}
        for root, masks in paths.values():
            for path in (root / masks).glob("v[01]/*.png"):  # two videos of three show dots only
                trees.save_ids(path, np.pad(np.ones((9, 9), np.uint8), ((0, 111), (0, 151))))
    file = tmp_path / "videos.yaml"
    images = {"vipseg": "images", "mose": "JPEGImages"}
    sections = [f"{name}: {{images: {root}/{images[name]}, masks: {root}/{masks}, depth: {root}/depth}}\n"
                for name, (root, masks) in paths.items()]  # fmt: skip
    file.write_text("weights: {vipseg: 3, mose: 1}\n" + "".join(sections))
    train(settings(tmp_path / "run", file))
    found = json.loads((tmp_path / "run/refusals.json").read_text())
    assert sum(one["accepted"] for one in found.values()) == 12
    assert sum(found["vipseg"]["refused"].values()) > 0


def test_the_published_mixture_is_what_a_run_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sam", "youtube_vos", "mose", "vipseg", "viton_hd", "saliency", "lvis"):
        trees.TREES[name](tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = load_config(
        RunConfig, ROOT / "configs/bifrost.yaml", [f"data.datasets={ROOT}/configs/datasets.yaml"]
    )
    sources, weights = config.data.open_sources()
    assert dict(zip(sources, weights, strict=True))["sam"] == 120000


def test_missing_data_names_file_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"datasets.yaml: sam: .*data/"):
        DataConfig(datasets=ROOT / "configs/datasets.yaml").open_sources()
    with pytest.raises(ValueError, match="only one of them"):
        DataConfig(datasets=Path("a.yaml"), scenes=Path("b"))
    with pytest.raises(ValueError, match=r"data.datasets nor data.scenes"):
        DataConfig().open_sources()
