"""Painting one prepared pair: seeds, known region, starts, control evaluations, offload."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cldm.config import Sampling
from cldm.create import create_compositor
from cldm.model import Compositor
from cldm.pipeline import CompositorPipeline, Weights
from datasets.inputs import Inputs
from datasets.pairs import Pair, build_pair
from ldm.denoise import Monitor
from ldm.images import from_pm1
from tests.cldm.small import SMALL, SMALL_CONFIG

NOISE = Sampling(scheduler="ddim", steps=3, guidance=2.0, init="noise")


@pytest.fixture(scope="module")
def model() -> Compositor:
    return create_compositor(SMALL, seed=4).eval()


@pytest.fixture(scope="module")
def pair() -> Pair:
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (64, 80, 3), np.uint8)
    item, mask = rng.integers(0, 256, (40, 30, 3), np.uint8), np.zeros((40, 30), bool)
    mask[5:35, 4:26] = True
    depth = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[:, None], 80, axis=1)
    return build_pair(
        Inputs(item, mask, background, depth, (0.3, 0.3, 0.6, 0.8), (0.6, 0.8)), SMALL_CONFIG.pair
    )


def test_sample_depends_on_its_seed_only(model: Compositor, pair: Pair) -> None:
    together = CompositorPipeline(model).paint(pair, [7, 8, 9], NOISE)
    alone = CompositorPipeline(model).paint(pair, [8], NOISE)[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 1
    assert np.array_equal(alone, CompositorPipeline(model).paint(pair, [8], NOISE)[0])


def test_known_region_keeps_the_latents_of_the_background(model: Compositor, pair: Pair) -> None:
    steps: list[torch.Tensor] = []
    CompositorPipeline(model).paint(
        pair, [0], NOISE, monitor=Monitor(lambda step: steps.append(step.latents))
    )
    with torch.no_grad():
        background = model.latent_space.encode(pair.background_pm1[None])
    keep = CompositorPipeline.known_region([pair], background, background).keep
    assert 0 < keep.mean() < 1
    assert torch.equal(steps[-1] * keep, background * keep)
    assert not torch.allclose(steps[-1] * (1 - keep), background * (1 - keep))


def test_no_edited_pixel_counts_as_known(pair: Pair) -> None:
    keep = CompositorPipeline.known_region([pair], *torch.zeros(2, 1, 4, 8, 8)).keep[0, 0].numpy()
    covered = np.kron(keep, np.ones((4, 4))) > 0
    assert not (covered & pair.edit_mask[0].numpy()).any()


def test_one_control_evaluation_per_step_for_all_samples(model: Compositor, pair: Pair, monkeypatch) -> None:
    batches: list[int] = []
    forward = type(model.detail).forward
    monkeypatch.setattr(
        type(model.detail),
        "forward",
        lambda self, embedding, *rest: (batches.append(len(embedding)), forward(self, embedding, *rest))[1],
    )
    CompositorPipeline(model).paint(pair, [1, 2, 3, 4], NOISE)
    assert batches == [2] * (
        2 * NOISE.steps
    )  # two branches per step, both halves of guidance, whatever the samples


def test_strength_zero_is_the_paste(model: Compositor, pair: Pair) -> None:
    out = CompositorPipeline(model).paint(pair, [0], dataclasses.replace(NOISE, init="paste", strength=0.0))
    assert np.array_equal(out[0], from_pm1(pair.paste_pm1))


def test_weights_change_the_result_and_offload_does_not(model: Compositor, pair: Pair) -> None:
    plain = CompositorPipeline(model).paint(pair, [0], NOISE)[0]
    assert not np.array_equal(plain, CompositorPipeline(model).paint(pair, [0], NOISE, Weights(1.0, 0.0))[0])
    assert not np.array_equal(plain, CompositorPipeline(model).paint(pair, [0], NOISE, Weights(0.0, 1.0))[0])
    assert np.array_equal(plain, CompositorPipeline(model, offload=True).paint(pair, [0], NOISE)[0])


@pytest.mark.parametrize("offload", [True, False])
def test_no_thread_takes_a_network_from_the_device_while_another_uses_it(
    model: Compositor, monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    """Both want the same network: with offload the second waits for the end of the first one's stage."""
    events: list[str] = []
    monkeypatch.setattr(model.unet, "to", lambda device: events.append(str(device)))
    begun, other = threading.Event(), threading.Event()

    def first() -> None:
        with CompositorPipeline(model, offload=offload).on_device(model.unet):
            begun.set()
            other.wait(0.2 if offload else 10)
            events.append("first")

    def second() -> None:
        begun.wait(10)
        with CompositorPipeline(model, offload=offload).on_device(model.unet):
            with CompositorPipeline(model, offload=offload).on_device(model.unet):  # of the same thread
                events.append("second")
            other.set()

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    expected = ["first", "cpu", "second", "cpu", "cpu"] if offload else ["second", "first"]
    assert events == expected


@pytest.mark.parametrize("scheduler", ["ddim", "unipc", "dpm++", "euler", "euler-a"])
def test_schedulers_and_starts(model: Compositor, pair: Pair, scheduler: str) -> None:
    for init, strength in (("noise", 1.0), ("paste", 0.5)):
        sampling = Sampling(scheduler, 4, 1.5, init, strength)
        out = CompositorPipeline(model).paint(pair, [0, 1], sampling)
        assert [image.shape for image in out] == [(32, 32, 3)] * 2


def test_many_samples_are_painted_in_batches(
    model: Compositor, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    monkeypatch.setattr("cldm.pipeline.AT_ONCE", 3)
    shown: list[int] = []
    hook = model.unet.register_forward_pre_hook(
        lambda unet, given, named: batches.append(len((given or (named["sample"],))[0])), with_kwargs=True
    )
    monitor = Monitor(lambda step: shown.append(len(step.latents)), progress=False)
    together = CompositorPipeline(model).paint(pair, range(7), NOISE, monitor=monitor)
    hook.remove()
    assert batches == [6] * 6 + [2] * 3  # guidance doubles them; three steps each
    assert shown == [3, 3, 3]  # previews are of the first batch
    for seed in (0, 4, 6):
        alone = CompositorPipeline(model).paint(pair, [seed], NOISE)[0]
        assert np.abs(together[seed].astype(int) - alone).max() <= 1
