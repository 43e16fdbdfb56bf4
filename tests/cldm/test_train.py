"""The real training entry on small networks: files, exact continuation, order of the examples, evaluation."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cldm.model import load_compositor
from cldm.training.run import train
from cldm.training.settings import CompositorTrainConfig, DataConfig, RunConfig, TrainerConfig
from datasets.base import BOTH, Rejected
from datasets.examples import PairDataset, RunBatches, collate_pairs
from datasets.inputs import Inputs
from datasets.pairs import build_pair, model_inputs
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from datasets.sources.rendered import RenderedScenes, read_images
from tests.cldm.small import SMALL, SMALL_CONFIG
from tiny.compositor.autoencoder import AutoencoderTraining
from tiny.compositor.training import pca_db, train_first_stage


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    render_shards(StoreSettings(out=out, count=12, size=(48, 48), reference_size=(32, 32), window="object"))
    return out


def run_config(out: Path, scenes: Path, steps: int) -> RunConfig:
    return RunConfig(
        out=out, network=SMALL, pair=SMALL_CONFIG.pair, sampling=SMALL_CONFIG.sampling,
        data=DataConfig(scenes=scenes, batch=2, workers=0),
        train=CompositorTrainConfig(lr=1e-3, trainable="all", ema=0.9, mask_weight=2.0, warmup=2),
        trainer=TrainerConfig(max_steps=steps, accelerator="cpu", precision="32-true", clip=1.0, save_every=3,
                              log_every=1),
    )  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}.{key}": value
        for file in sorted((run / "model").rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def test_interrupted_training_ends_with_the_same_weights(scenes: Path, tmp_path: Path) -> None:
    train(run_config(tmp_path / "whole", scenes, 4))
    part = run_config(tmp_path / "parts", scenes, 4)
    train(replace(part, trainer=replace(part.trainer, max_steps=2)))
    middle = weights(tmp_path / "parts")
    train(part)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, msg=key)
    assert any(not torch.equal(middle[key], value) for key, value in parts.items())
    assert {path.name for path in (tmp_path / "whole").iterdir()} >= {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "model",
    }
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert load_compositor(tmp_path / "whole" / "model")[1].pair == SMALL_CONFIG.pair


def test_example_k_is_the_same_example_however_it_is_reached(scenes: Path) -> None:
    source = RenderedScenes(scenes)
    one, other = PairDataset(source, SMALL_CONFIG.pair, 5), PairDataset(source, SMALL_CONFIG.pair, 5)
    forward = [one[k] for k in range(14)]
    assert all(torch.equal(other[k].detail_pm1, forward[k].detail_pm1) for k in (13, 2, 7))
    assert {one.mixture(k)[1] for k in range(12)} == set(range(12))
    assert [one.mixture(k) for k in range(12)] != [one.mixture(k) for k in range(12, 24)]
    changed = PairDataset(source, SMALL_CONFIG.pair, 6)[2]
    assert not torch.equal(changed.detail_pm1, forward[2].detail_pm1)
    assert list(RunBatches(4, 2, lambda: 2)) == [[4, 5], [6, 7]]


def test_collate_stacks_every_tensor(scenes: Path) -> None:
    dataset = PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)
    batch = model_inputs(collate_pairs([dataset[0], dataset[1], dataset[2]]))
    assert batch["detail_pm1"].shape == (3, 4, 32, 32)
    assert batch["edit_mask"].dtype == torch.bool
    assert torch.equal(batch["target_pm1"][1], dataset[1].target_pm1)


def test_training_target_is_the_truth_inside_the_edit_region_only(scenes: Path) -> None:
    dataset = PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)
    for k in range(8):
        pair = dataset[k]
        outside = ~pair.edit_mask.expand(3, -1, -1)
        assert torch.equal(pair.target_pm1[outside], pair.background_pm1[outside])


class Refusing:
    """A source that refuses every item."""

    dynamics = BOTH

    def __len__(self) -> int:
        return 3

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        raise Rejected(f"mask covers {index} % of the image")


def test_a_source_that_yields_nothing_stops_with_the_reasons() -> None:
    with pytest.raises(ValueError, match="all 2000 tries were rejected: item 0: mask covers 0 %"):
        PairDataset(Refusing(), SMALL_CONFIG.pair, 0)[0]


def test_missing_scenes_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="python -m datasets.scenes render"):
        RenderedScenes(tmp_path)


def test_learning_rate_schedule() -> None:
    config = CompositorTrainConfig(warmup=10, hold=0.5, final_lr=0.1)
    rates = [config.lr_factor(step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9:51] == [1.0] * 42
    assert rates == rates[:51] + sorted(rates[51:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert CompositorTrainConfig().lr_factor(70, 100) == 1.0


def test_first_stage_learns_and_is_compared_with_pca(scenes: Path, tmp_path: Path) -> None:
    images = read_images(scenes, ("image", "without"))
    assert images.shape == (24, 48, 48, 3)
    psnr = {}
    for name, steps, lr in (("untrained", 1, 1e-9), ("trained", 60, 1.5e-3)):
        out, sizes = tmp_path / name, SMALL.autoencoder
        train_first_stage(AutoencoderTraining(scenes, scenes, out, sizes, 32, 4, steps, bf16=False, lr=lr))
        psnr[name] = json.loads((out / "manifest.json").read_text())["held_out"]["psnr_db"]
    assert psnr["trained"] > psnr["untrained"] + 2
    linear = [pca_db(images, images, 4, channels).mean() for channels in (2, 8, 48)]
    assert linear == sorted(linear)
    assert linear[2] > 60  # all 48 numbers of a 4 x 4 patch: no loss but rounding


def test_the_targets_own_depth_is_shown_only_by_option(scenes: Path) -> None:
    usual, told = RenderedScenes(scenes), RenderedScenes(scenes, true_depth=True)
    hints = [build_pair(source.inputs(0), SMALL_CONFIG.pair).depth_01 for source in (usual, told)]
    unlike = build_pair(replace(usual.inputs(0), target_u8=None), SMALL_CONFIG.pair).depth_01
    assert torch.equal(hints[0], unlike)
    assert not torch.equal(hints[0], hints[1])
