"""Steps that take residuals, guidance or deep features from other steps: what runs, and how near it comes."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cldm.config import SPEEDS, Sampling
from cldm.create import create_compositor
from cldm.model import Compositor, Conditions
from cldm.pipeline import CompositorPipeline, Controls, Weights
from ldm.denoise import AT_ONCE, Monitor, denoise, set_steps
from ldm.latents import make_scheduler
from ldm.reuse import LAST_FULL, predict_in_parts
from tests.cldm.small import SMALL
from tests.cldm.test_pipeline import pair  # noqa: F401  (a fixture)

PLAIN = Sampling("ddim", steps=10, guidance=3.0)
QUIET = Monitor(progress=False)


@pytest.fixture(scope="module")
def model() -> Compositor:
    return create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval()


@pytest.fixture
def calls(model, monkeypatch) -> Counter:
    """How often each part of the networks runs, and on how many rows in all."""
    counted: Counter = Counter()
    for name, part in {"detail": model.detail, "depth": model.depth, "mid": model.unet.mid_block}.items():

        def forward(sample, *args, name=name, run=part.forward, **options):
            counted[name] += 1
            counted[f"{name} rows"] += len(sample)
            return run(sample, *args, **options)

        monkeypatch.setattr(part, "forward", forward)
    return counted


def paint(model, pair, sampling, seeds=(5,), **options):  # noqa: F811
    return CompositorPipeline(model).paint(pair, list(seeds), sampling, monitor=QUIET, **options)


def conditions_of(model: Compositor) -> Conditions:
    draw = torch.Generator().manual_seed(0)
    reference, size = SMALL.reference_size, SMALL.size
    images = [
        torch.rand(1, n, *hw, generator=draw) for n, hw in ((3, (reference,) * 2), (4, size), (3, size))
    ]
    return model.conditions(*images).with_null(model.identity.null())


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 5])
def test_residuals_are_linear_between_their_evaluations(model, calls, count):
    conditions, times = conditions_of(model), np.linspace(999, 19, 50).tolist()
    few = Controls(model, conditions, Weights(1.0, 0.5), times, replace(PLAIN, control_evaluations=count))
    nodes = np.linspace(19, 999, count).tolist()
    told = [model.residuals(torch.tensor(node), conditions, 1.0, 0.5) for node in nodes]
    branches = calls["detail"]
    for index in range(count - 1, -1, -1):  # as a run goes
        for got, value in zip(few.at(torch.tensor(nodes[index])), told[index], strict=True):
            torch.testing.assert_close(got, value)
        if not index:
            break
        quarter = few.at(torch.tensor(0.75 * nodes[index] + 0.25 * nodes[index - 1]))
        for got, one, other in zip(quarter, told[index], told[index - 1], strict=True):
            torch.testing.assert_close(got, 0.75 * one + 0.25 * other)
        assert few.values.keys() == {index, index - 1}  # what is past is not kept
    assert calls["detail"] - branches == count


@torch.inference_mode()
@pytest.mark.parametrize("evaluations", [0, 20])
def test_of_many_residuals_those_of_few_steps_are_held(model, evaluations):
    """At 20 evaluations of true size all of them would take 1 GB."""
    times = np.linspace(999, 19, 50).tolist()
    controls = Controls(
        model, conditions_of(model), Weights(), times, replace(PLAIN, control_evaluations=evaluations)
    )
    held = [controls.at(torch.tensor(time)) and len(controls.values) for time in times]
    assert max(held) == (2 if evaluations else 1)


@torch.inference_mode()
def test_parts_of_the_unet_are_the_stock_forward(model):
    conditions, t = conditions_of(model), torch.tensor(500)
    x = torch.randn(2, model.latent_space.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    residuals = model.residuals(t, conditions)
    whole = model.predict(x, t, conditions.tokens, residuals)
    split, entering = predict_in_parts(model.unet, x, t, conditions.tokens, residuals, None)
    again, none = predict_in_parts(model.unet, x, t, conditions.tokens, residuals, entering[0])
    assert torch.equal(whole, split)
    assert torch.equal(whole, again)
    assert not none
    later, _ = predict_in_parts(model.unet, x * 0.9, t - 50, conditions.tokens, residuals, entering[0])
    assert not torch.equal(later, whole)


@torch.inference_mode()
@pytest.mark.parametrize(("layers", "ran"), [(0, 2), (1, 1), (2, 2), (10, 2)])
def test_only_the_last_layers_run_on_kept_features(model, monkeypatch, layers, ran):
    conditions, t = conditions_of(model), torch.tensor(500)
    x = torch.randn(2, model.latent_space.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    residuals = model.residuals(t, conditions)
    whole = model.predict(x, t, conditions.tokens, residuals)
    split, entering = predict_in_parts(model.unet, x, t, conditions.tokens, residuals, None)
    deep = entering[-min(layers, len(entering))]
    assert torch.equal(whole, split)
    counted = Counter()
    for name, block in {"down": model.unet.down_blocks[0], "up": model.unet.up_blocks[-1]}.items():
        for resnet in block.resnets:

            def forward(*values, run=resnet.forward, name=name):
                counted[name] += 1
                return run(*values)

            monkeypatch.setattr(resnet, "forward", forward)
    again, _ = predict_in_parts(model.unet, x, t, conditions.tokens, residuals, deep, layers)
    torch.testing.assert_close(again, whole)
    assert (counted["down"], counted["up"]) == (ran - 1, ran)


def test_settings_that_change_nothing_give_the_same_bytes(model, pair, calls):  # noqa: F811
    plain = paint(model, pair, PLAIN)[0]
    for same in (
        {"control_evaluations": 10},
        {"control_evaluations": 99},
        {"guidance_interval": (0.01, 1.0)},
    ):
        assert np.array_equal(paint(model, pair, replace(PLAIN, **same))[0], plain), same
    assert calls["detail"] == calls["depth"] == calls["mid"] == 4 * PLAIN.steps


def test_a_few_evaluations_stand_for_all_steps_and_the_samples_at_once(model, pair, calls):  # noqa: F811
    plain = paint(model, pair, PLAIN)[0].astype(float)
    calls.clear()
    few = paint(model, pair, replace(PLAIN, control_evaluations=5))[0]
    assert calls["detail"] == calls["depth"] == 5
    assert calls["mid"] == PLAIN.steps
    assert np.abs(few - plain).max() > 0
    calls.clear()
    for samples, ran in ((AT_ONCE, 2), (AT_ONCE + 1, 2 + 1)):  # the last one is still there
        calls.clear()
        paint(model, pair, replace(PLAIN, steps=4, control_evaluations=2), range(samples))
        assert calls["detail"] == ran


def test_guidance_acts_in_its_interval_only(model, pair, calls):  # noqa: F811
    unguided = paint(model, pair, replace(PLAIN, guidance=1.0))[0]
    calls.clear()
    assert np.array_equal(paint(model, pair, replace(PLAIN, guidance_interval=(0.0, 0.0)))[0], unguided)
    assert calls["mid rows"] == PLAIN.steps
    calls.clear()
    middle = paint(model, pair, replace(PLAIN, guidance_interval=(0.35, 0.75)))[0]  # t = 399 ... 699
    assert calls["mid rows"] == PLAIN.steps + 4
    assert not np.array_equal(middle, unguided)
    calls.clear()
    paint(model, pair, replace(PLAIN, guidance_interval=(0.35, 0.75), control_evaluations=5))
    assert calls["detail rows"] == 5 + 2  # of 10 steps, of 4


@pytest.mark.parametrize(("every", "both"), [(1, 10), (2, 5), (3, 4), (4, 3), (10, 1)])
def test_the_unconditional_half_runs_at_every_nth_step(model, pair, calls, every, both):  # noqa: F811
    paint(model, pair, replace(PLAIN, guidance_every=every))
    assert calls["mid rows"] == PLAIN.steps + both
    calls.clear()
    middle = replace(PLAIN, guidance_interval=(0.35, 0.75), guidance_every=every)  # t = 399 ... 699
    paint(model, pair, middle)
    assert calls["mid rows"] == PLAIN.steps + -(-4 // every)


def test_a_kept_difference_guides_the_steps_between():
    schedule = set_steps(make_scheduler("ddim", {"num_train_timesteps": 1000}), 4, 1.0, torch.device("cpu"))
    seen = []

    def predict(x: torch.Tensor, t: torch.Tensor, both: bool) -> torch.Tensor:
        seen.append(both)
        value = torch.full_like(x, float(len(seen)))  # conditional: 1, 2, 3, 4; unconditional: 0
        return value * torch.tensor([0.0, 1.0])[:, None, None, None] if both else value

    def step(prediction, t, latents, **options):
        return SimpleNamespace(prev_sample=prediction)

    results = []
    monitor = Monitor(progress=False, on_step=lambda done: results.append(float(done.latents.mean())))
    schedule.scheduler.step = step
    for every, plan, wanted in ((1, [1, 1, 1, 1], [3, 6, 9, 12]), (2, [1, 0, 1, 0], [3, 4, 9, 10])):
        seen.clear(), results.clear()
        denoise(
            predict,
            torch.zeros(1, 1, 1, 1),
            schedule._replace(guide_every=every),
            guidance=3.0,
            monitor=monitor,
        )
        assert (seen, results) == (plan, wanted)
    seen.clear(), results.clear()
    inside = schedule._replace(guide_every=2, interval=(0.1, 0.6))  # t = 751, 501, 251, 1
    denoise(predict, torch.zeros(1, 1, 1, 1), inside, guidance=3.0, monitor=monitor)
    assert (seen, results) == ([0, 1, 0, 0], [1, 6, 7, 4])


@pytest.mark.parametrize(("every", "whole"), [(1, 10), (2, 7), (3, 6), (4, 5), (10, 4)])
def test_deep_features_are_computed_at_every_nth_step_and_at_the_last(model, pair, calls, every, whole):  # noqa: F811
    paint(model, pair, replace(PLAIN, reuse_every=every))
    assert calls["mid"] == whole


@pytest.mark.parametrize(("last", "whole"), [(0, 5), (1, 6), (2, 6), (3, 7), (10, 10)])
def test_so_many_last_steps_reuse_nothing(model, pair, calls, last, whole):  # noqa: F811
    paint(model, pair, replace(PLAIN, reuse_every=2, full_last=last))
    assert calls["mid"] == whole
    assert Sampling().full_last == LAST_FULL


def test_exact_is_everything_for_20_steps_and_its_bytes_nearly_for_more(model, pair, calls):  # noqa: F811
    for steps, ran in ((20, 20), (30, 20)):
        plain = replace(PLAIN, steps=steps)
        expected = paint(model, pair, plain)[0].astype(int)
        calls.clear()
        found = paint(model, pair, replace(plain, **SPEEDS["exact"]))[0]
        assert (calls["detail"], calls["mid"]) == (ran, steps)
        assert np.abs(found - expected).max() <= (steps > 20)


def test_guidance_that_begins_later_needs_features_of_both_halves(model, pair, calls):  # noqa: F811
    paint(model, pair, replace(PLAIN, reuse_every=10, guidance_interval=(0.0, 0.65)))
    assert calls["mid"] == 1 + 1 + LAST_FULL
    assert calls["mid rows"] == 1 + 2 + 2 * LAST_FULL


@pytest.mark.parametrize(("weights", "ran"), [((0.0, 1.0), "depth"), ((1.0, 0.0), "detail")])
def test_a_branch_of_weight_zero_is_not_run(model, pair, calls, weights, ran):  # noqa: F811
    paint(model, pair, PLAIN, weights=Weights(*weights))
    assert calls[ran] == PLAIN.steps
    assert calls["detail"] + calls["depth"] == PLAIN.steps


@pytest.mark.parametrize(
    ("speed", "detail_rows", "mid_rows"), [("exact", 20, 20), ("balanced", 7, 9), ("fast", 5, 6)]
)
def test_named_speeds_run_less(model, pair, calls, speed, detail_rows, mid_rows):  # noqa: F811
    paint(model, pair, replace(PLAIN, **SPEEDS[speed]))
    assert (calls["detail rows"], calls["mid rows"]) == (detail_rows, mid_rows)


@pytest.mark.parametrize("evaluations", [0, 4])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("batch", [2, 3, 100])
def test_timesteps_in_one_batch_give_the_same(model, pair, calls, evaluations, guidance, batch):  # noqa: F811
    alone = replace(PLAIN, guidance=guidance, control_evaluations=evaluations)
    (expected,), one_by_one = paint(model, pair, alone), dict(calls)
    calls.clear()
    (found,) = paint(model, pair, replace(alone, control_batch=batch))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert calls["detail rows"] == calls["depth rows"] == one_by_one["detail rows"]
    assert calls["detail"] == math.ceil((evaluations or PLAIN.steps) / batch) < one_by_one["detail"]
    assert calls["mid"] == one_by_one["mid"]
