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
    whole = settings(tmp_path / "whole", datasets_file)
    train(whole)
    found = json.loads((tmp_path / "whole/refusals.json").read_text())
    assert list(found) == ["folder", "mose"]
    assert sum(one["accepted"] for one in found.values()) == 12
    assert found["folder"]["refused"]
    part = settings(tmp_path / "part", datasets_file)
    train(replace(part, trainer=replace(part.trainer, max_steps=3)))
    train(part)
    assert json.loads((tmp_path / "part/refusals.json").read_text()) == found


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
