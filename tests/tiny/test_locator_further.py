"""The small locator trains further: from the weights of a folder, with the safest places as answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from ldm.files import hash_folder
from tests.tiny.test_locator import TINY, training
from tiny.llava import create_llava, load_weights
from tiny.locator.questions import NUMBERS, PLACED, VOCABULARY, open_questions
from tiny.locator.training import train_small_locator


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine scenes of 64 px."""
    folder = tmp_path_factory.mktemp("scenes")
    render_shards(
        StoreSettings(out=folder, count=9, size=(64, 64), reference_size=(16, 16), smooth_edges=False)
    )
    return folder


def test_it_starts_from_a_folder_and_says_so(data: Path, tmp_path: Path) -> None:
    first = training(data, tmp_path / "first", placement=1)
    train_small_locator(first)
    folder = first.out / "model"
    model = create_llava(TINY, VOCABULARY, 1, NUMBERS)
    assert load_weights(model, folder) == hash_folder(folder)
    trained = torch.load(first.out / "placement.pt", weights_only=True)["weights"]
    for name, value in model.state_dict().items():
        stored = trained[f"model.{name}"]
        torch.testing.assert_close(value, stored.half().float() if stored.is_floating_point() else stored)
    with pytest.raises(ValueError, match="another kind or size"):
        load_weights(create_llava(replace(TINY, hidden=32), VOCABULARY, 0), folder)

    stage = replace(first.vision, steps=1, lr=1e-9, vision_lr=1e-9)
    further = replace(first, out=tmp_path / "more", pretrained=folder, proposals=60, vision=stage,
                      matching=stage, placement=stage)  # fmt: skip
    train_small_locator(further)
    manifest, before = (json.loads((run.out / "model/manifest.json").read_text()) for run in (further, first))
    assert manifest["pretrained"]["settings"] == before["settings"]
    assert manifest["pretrained"]["files"] == hash_folder(folder)
    assert "vision" not in manifest["held_out"]["gates"]
    assert "shape" in manifest["held_out"]["gates"]["placement"]
    moved = torch.load(further.out / "placement.pt", weights_only=True)["weights"]
    for name, value in model.named_parameters():  # running means of the vision tower move at any rate
        torch.testing.assert_close(moved[f"model.{name}"], value, atol=1e-5, rtol=0)


def test_safest_answers_change_nothing_else(data: Path, tmp_path: Path) -> None:
    drawn = open_questions(data, tmp_path / "drawn", seed=0)
    safest = open_questions(data, tmp_path / "safest", seed=0, proposals=60)
    assert (safest.length == drawn.length).all()
    answered = np.arange(drawn.tokens.shape[-1]) >= drawn.length[..., None] - 8
    assert (np.where(answered, 0, safest.tokens) == np.where(answered, 0, drawn.tokens)).all()
    assert (safest.tokens[:, :, :PLACED] != drawn.tokens[:, :, :PLACED]).any()
    assert (safest.tokens[:, :, PLACED:] == drawn.tokens[:, :, PLACED:]).all()
    with pytest.raises(ValueError, match="other settings"):
        open_questions(data, tmp_path / "safest", seed=0)
