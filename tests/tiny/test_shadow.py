"""Properties of the shadow network's training: truth, examples, measures; a pause changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.experts.shadow import CHANNELS, SIDE, ShadowNetwork, network_input
from ldm.settings.config import load_config
from tiny.shadow.train import ShadowScenes, TrainShadowConfig
from tiny.shadow.training import (
    create_shadow_network,
    load_scenes,
    measure_shadow,
    shadow_example,
    stacked,
    train_shadow,
)

SMALL = ["channels=[8,8,16]", "scenes.train=4", "scenes.held_out=2", "batch=2", "warmup=1", "bf16=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few scenes; whoever trains in here finds them rendered."""
    return tmp_path_factory.mktemp("shadow")


@pytest.mark.parametrize("own_depth", [True, False])
def test_an_example_holds_the_exact_fall_of_light(folder: Path, own_depth: bool) -> None:
    scenes = load_scenes(ShadowScenes(folder=folder, train=4), held_out=False)
    for index in range(4):
        inputs, light, fall, ground = shadow_example(scenes, index, 100.0, own_depth)  # the whole view
        assert inputs.shape == (CHANNELS, SIDE, SIDE)
        weights = np.array([0.299, 0.587, 0.114]) / 255
        before, after = (scenes.array(f"{name}_u8", index) @ weights for name in ("without", "image"))
        assert np.allclose(light, before, atol=1e-5)
        assert np.allclose(fall, np.maximum(before - after, 0), atol=1e-5)
        solid = scenes.array("amodal", index)[scenes.facts(index).removed]
        assert not ground.numpy()[solid].any()
        assert np.array_equal(inputs[4].numpy() > 0, solid)
    varied = [shadow_example(scenes, 0, 3.0, own_depth, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(varied[0][0], varied[1][0])
    assert not torch.equal(varied[0][0], varied[2][0])


def test_measures_of_what_is_exact_of_nothing_and_of_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    fall = torch.zeros(8, 8)
    fall[2:4] = 0.2
    example = (torch.zeros(CHANNELS, 8, 8), torch.ones(8, 8), fall, torch.ones(8, 8))
    model = create_shadow_network((8, 16), 0)
    for factor, recall, precision in ((1.0, 1.0, 1.0), (0.5, 0.5, 1.0), (2.0, 1.0, 0.5), (0.0, 0.0, 0.0)):
        monkeypatch.setattr(
            "tiny.shadow.training.darkening", lambda _, x, f=factor: f * fall.expand(len(x), 8, 8)
        )
        found = measure_shadow(model, [example, example])
        assert found["recall"] == pytest.approx(recall)
        assert found["precision"] == pytest.approx(precision)
        assert (found["gain_db"] > 0.1) == (factor in (1.0, 0.5))


def test_the_input_does_not_depend_on_the_depth_of_the_whole(folder: Path) -> None:
    image_u8, mask_01 = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.float32)
    mask_01[30:60, 30:60] = 1
    depth_01 = np.linspace(0.2, 0.4, SIDE, dtype=np.float32)[:, None].repeat(SIDE, 1)
    one, other = (network_input(image_u8, depth_01 + d, mask_01, depth_01 + d) for d in (0, 0.3))
    assert torch.allclose(one, other, atol=1e-5)
    assert stacked([(one, one, one, one)] * 3)[0].shape == (3, CHANNELS, SIDE, SIDE)


def test_a_pause_changes_nothing_and_the_network_loads(tmp_path: Path, folder: Path) -> None:
    def train(name: str, steps: int, *more: str) -> list[str]:
        options = [f"out={tmp_path / name}", f"scenes.folder={folder}", f"steps={steps}", "log_every=1"]
        train_shadow(load_config(TrainShadowConfig, None, [*SMALL, *options, "final_lr=1", *more]))
        rows = (tmp_path / name / "log.csv").read_text().splitlines()[1:]
        return [",".join(row.split(",")[2:]) for row in rows]

    whole = train("whole", 4)
    train("parts", 2)
    assert train("parts", 4) == whole
    assert len(whole) == 4
    networks = [tmp_path / name / "network" for name in ("whole", "parts")]
    weights = [(network / "diffusion_pytorch_model.safetensors").read_bytes() for network in networks]
    assert weights[0] == weights[1]
    manifest = json.loads((networks[0] / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert 0 <= manifest["held_out"]["f1"] <= 1
    assert (tmp_path / "whole" / "curve.png").read_bytes().startswith(b"\x89PNG")
    planes = [np.zeros((SIDE, SIDE), np.float32)] * 3
    dark = ShadowNetwork.load(networks[0]).darkening(np.zeros((SIDE, SIDE, 3), np.uint8), *planes)
    assert dark.shape == (SIDE, SIDE)
    assert 0 < dark.min() <= dark.max() < 1
    train("unmeasured", 1, "log_every=50")
    assert (tmp_path / "unmeasured" / "curve.png").is_file()
    with pytest.raises(ValueError, match="other settings"):
        train("parts", 4, "seed=1")


@pytest.mark.parametrize("wrong", ["channels=[4]", "batch=0", "own_depth=2", "zooms=[1,2]"])
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0].rstrip("s")):
        load_config(TrainShadowConfig, None, [wrong])
