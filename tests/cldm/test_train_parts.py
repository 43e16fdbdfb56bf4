"""The parts of a training run: mixture, draws, timesteps, loss weights, clipping, memory, metrics, probe."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler

from cldm.create import create_compositor
from cldm.training import run as training_run
from cldm.training.module import CompositorModule, StepRandomness, shifted_timesteps, weighted_error
from cldm.training.records import COLUMNS, condition_sensitivity
from cldm.training.settings import CompositorTrainConfig, DataConfig
from datasets.base import BOTH, MOVING, STILL, Mixture
from datasets.examples import PairDataset, RunBatches, collate_pairs
from datasets.pairs import model_inputs
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from datasets.sources.rendered import RenderedScenes
from ldm.denoise import min_snr_weight
from ldm.training.run import CsvLogger
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train import run_config, scenes

__all__ = ["scenes"]  # a fixture


@pytest.fixture(scope="module")
def other_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other")
    render_shards(
        StoreSettings(
            out=out, count=5, first_seed=50, size=(48, 48), reference_size=(32, 32), window="object"
        )
    )
    return out


def test_mixture_has_the_shares_and_every_item_in_turn() -> None:
    mixture = Mixture((7, 30), (1, 3), seed=2)
    picks = [mixture(k) for k in range(2000)]
    assert Counter(source for source, _ in picks) == {0: 500, 1: 1500}
    ninety = Counter(source for source, _ in picks[:100])
    assert 10 < ninety[0] < 40
    first = [item for source, item in picks if source == 0]
    for start in range(0, 490, 7):
        assert sorted(first[start : start + 7]) == list(range(7))
    again = Mixture((7, 30), (1, 3), seed=2)
    assert [again(k) for k in (1999, 3, 1000, 4)] == [picks[k] for k in (1999, 3, 1000, 4)]
    assert [Mixture((7, 30), (1, 3), seed=3)(k) for k in range(20)] != picks[:20]


def test_shares_are_whole_and_never_empty() -> None:
    assert sum(Mixture((3, 3, 3), (1, 1, 1), seed=0).counts) == 1000
    assert Mixture((3, 3), (1e-9, 1), seed=0).counts == (1, 999)
    with pytest.raises(ValueError, match="positive"):
        Mixture((3, 3), (0, 1), seed=0)
    with pytest.raises(ValueError, match=r"data.weights.*2 in all, got 1"):
        DataConfig(scenes=Path("a"), more=(Path("b"),), weights=(1.0,))


def test_two_folders_mixed_give_the_examples_of_each(scenes: Path, other_scenes: Path) -> None:
    sources = [RenderedScenes(scenes), RenderedScenes(other_scenes)]
    dataset = PairDataset(sources, SMALL_CONFIG.pair, 0, weights=(3, 1))
    picks = [dataset.mixture(k) for k in range(60)]
    assert {source for source, _ in picks} == {0, 1}
    assert {item for source, item in picks if source == 1} == set(range(5))
    k = next(k for k, (source, _) in enumerate(picks) if source == 1)
    assert int(dataset[k].dynamics) == BOTH
    assert torch.equal(
        dataset[k].target_pm1, PairDataset(sources, SMALL_CONFIG.pair, 0, (3, 1))[k].target_pm1
    )


def test_devices_share_out_what_one_device_would_see() -> None:
    one = list(RunBatches(5, 6, lambda: 1))
    both = [list(RunBatches(5, 3, lambda: 1, rank, 2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*both, strict=True)] == one
    assert not {k for batch in both[0] for k in batch} & {k for batch in both[1] for k in batch}
    whole = StepRandomness.draw(1, 4, (6, 2, 3, 3), 1000)
    for rank in (0, 1):
        mine = StepRandomness.draw(1, 4, (3, 2, 3, 3), 1000, rank, 2)
        part = slice(3 * rank, 3 * rank + 3)
        assert torch.equal(mine.noise, whole.noise[part])
        assert torch.equal(mine.drops, whole.drops[:, part])


def test_timesteps_by_dynamics() -> None:
    draws = StepRandomness.draw(0, 0, (4000, 1, 1, 1), 1000)
    moving = draws.timesteps_by_dynamics(torch.full((4000,), MOVING), 1000)
    still = draws.timesteps_by_dynamics(torch.full((4000,), STILL), 1000)
    both = draws.timesteps_by_dynamics(torch.full((4000,), BOTH), 1000)
    assert torch.equal(both, draws.timesteps)
    assert (moving >= 500).float().mean().item() == pytest.approx(0.7 + 0.3 / 2, abs=0.03)
    assert (still < 500).float().mean().item() == pytest.approx(0.7 + 0.3 / 2, abs=0.03)
    for found in (moving, still, both):
        assert (found.min() >= 0) & (found.max() < 1000)
        assert len(found.unique()) > 400


def test_shifted_timesteps_follow_the_published_curve() -> None:
    drawn = torch.arange(1000)
    assert torch.equal(shifted_timesteps(drawn, 1.0, 1000), drawn)
    noisy = shifted_timesteps(drawn, 3.0, 1000)
    assert noisy[499] == int(1000 * 3 * 0.4995 / (1 + 2 * 0.4995))  # the middle moves to three quarters
    assert (int(noisy.min()), int(noisy.max())) == (1, 999)
    assert bool((noisy.diff() >= 0).all())
    assert float((noisy >= 750).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert int(shifted_timesteps(drawn, 0.2, 1000).float().median()) < 200


def test_min_snr_weights() -> None:
    every, weights = torch.arange(4), []
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(prediction_type=kind)
        scheduler.alphas_cumprod = torch.tensor([0.99, 0.5, 0.1, 0.0])
        weights.append(min_snr_weight(scheduler, every, 5.0))
        assert torch.equal(min_snr_weight(scheduler, every, 0.0), torch.ones(4))
    noise, velocity = weights
    torch.testing.assert_close(noise, torch.tensor([5 / 99, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(velocity, torch.tensor([5 / 100, 0.5, 0.1, 0.0]))


def test_weighted_error_counts_the_mask_and_the_examples() -> None:
    wrong, mask = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    wrong[0, 0, 0, 0], mask[0, 0, :2, :2] = 1.0, True
    equal = torch.ones(2)
    plain = weighted_error(wrong, torch.zeros_like(wrong), mask, 0.0, equal)
    assert plain == 1 / 8
    assert weighted_error(wrong, torch.zeros_like(wrong), mask, 3.0, equal) == pytest.approx(4 / 11)
    none = weighted_error(wrong, torch.zeros_like(wrong), mask, 0.0, torch.tensor([0.0, 1.0]))
    assert none == 0


class Norms(pl.Callback):
    """Gradient norm at the optimizer, after clipping."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.seen.append(float(torch.nn.utils.get_total_norm(gradients)))


def test_clipping_clips_and_the_row_says_what_came_before(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = Norms()
    config = run_config(tmp_path / "run", scenes, 4)
    config = replace(config, trainer=replace(config.trainer, clip=1e-3))
    make = training_run.make_trainer

    def watched(*given: Any) -> pl.Trainer:
        trainer = make(*given)
        trainer.callbacks.append(norms)
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", watched)
    training_run.train(config)
    assert norms.seen
    assert max(norms.seen) <= 1e-3 * 1.01
    rows = CsvLogger(tmp_path / "run" / "metrics.csv", COLUMNS).rows()
    assert all(float(row["grad_norm"]) > 1e-2 for row in rows)


@pytest.mark.parametrize("trainable", ["all", "published"])
def test_gradient_checkpointing_changes_no_gradient(scenes: Path, trainable: str) -> None:
    dataset = PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)
    batch = model_inputs(collate_pairs([dataset[0], dataset[1]]))

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        config = CompositorTrainConfig(trainable=trainable, gradient_checkpointing=checkpointing)
        module = CompositorModule(create_compositor(SMALL, 1), config).train()
        net = module.model
        on = [part.is_gradient_checkpointing for part in (net.unet, net.detail.net, net.depth.net)]
        assert on == [checkpointing] * 3
        conditions = net.conditions(batch["reference_01"], batch["detail_pm1"], batch["depth_01"])
        x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        net(x, torch.tensor([100, 900]), conditions).square().mean().backward()
        return [p.grad for p in module.parameters_to_train if p.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


def test_metrics_file_keeps_whole_rows_up_to_a_step(tmp_path: Path) -> None:
    file = CsvLogger(tmp_path / "metrics.csv", COLUMNS)
    file.truncate(0)
    for step in (2, 4, 6):
        file.append({"step": step, "loss": step / 10})
    with file.path.open("a") as half:
        half.write("8,0.")
    assert [row["step"] for row in file.rows()] == ["2", "4", "6"]
    file.truncate(4)
    file.append({"step": 6, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in file.rows()] == [("2", "0.2"), ("4", "0.4"), ("6", "0.5")]


def test_probe_tells_which_hints_are_read(scenes: Path) -> None:
    dataset = PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)
    batch = model_inputs(collate_pairs([dataset[0], dataset[1]]))
    model = create_compositor(SMALL, 1)
    read = condition_sensitivity(model, batch)
    assert min(read.values()) > 1e-4
    assert read == condition_sensitivity(model, batch)
    deaf = create_compositor(replace(SMALL, zero_conv_std=0.0), 1)  # untrained zero convolutions
    changes = condition_sensitivity(deaf, batch)
    assert changes["change_detail"] == 0
    assert changes["change_depth"] == 0
    assert np.isfinite(changes["change_identity"])
