"""Control residuals that one image leaves to others of the same place: the same bytes, and no branch runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cldm.config import SPEEDS, Sampling
from cldm.create import create_compositor
from cldm.model import Compositor
from cldm.pipeline import CompositorPipeline, Weights
from compose import ComposeSettings
from compose.models import JobNetworks
from compose.pipeline import compose as composed
from compose.serve import app
from compose.serve.settings import ServeSettings
from datasets.pairs import Pair
from ldm.denoise import Monitor
from ldm.files import ROOT
from ldm.recent import FORGETFUL, Recent
from tests.cldm.small import SMALL
from tests.cldm.test_pipeline import pair  # noqa: F401  (a fixture)

PLAIN = Sampling("ddim", steps=10, guidance=3.0)
TENT = ROOT / "assets/examples/tent"
RUN = type(create_compositor(SMALL).detail).forward


@pytest.fixture(scope="module")
def model() -> Compositor:
    return create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval()


def with_other_branches() -> Compositor:
    """`model` but for the last layer of the detail branch."""
    other = create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval()
    other.detail.net.controlnet_mid_block.requires_grad_(False).weight.mul_(2)
    return other


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of a control branch."""
    found: list[int] = []

    def forward(branch: Any, embedding: torch.Tensor, *rest: Any) -> Any:
        found.append(len(embedding))
        return RUN(branch, embedding, *rest)

    monkeypatch.setattr("cldm.model.ControlBranch.forward", forward)
    return found


def painted(
    model: Compositor, pair: Pair, kept: Recent, sampling: Sampling = PLAIN, seed: int = 5, **more: Any  # noqa: F811
) -> np.ndarray:  # fmt: skip
    pipeline = CompositorPipeline(model, offload=more.pop("offload", False), residuals=kept)
    return pipeline.paint(pair, [seed], sampling, monitor=Monitor(progress=False), **more)[0]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.35, 0.75)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("speed", SPEEDS)
def test_other_seeds_of_a_place_run_no_branch_and_give_the_same_bytes(
    model: Compositor, pair: Pair, rows: list[int], speed: str, guidance: float, interval: Any  # noqa: F811
) -> None:  # fmt: skip
    sampling = replace(PLAIN, guidance=guidance, guidance_interval=interval, **SPEEDS[speed])
    anew = [painted(model, pair, FORGETFUL, sampling, seed) for seed in (5, 6)]
    kept = Recent(2**30)
    rows.clear()
    assert np.array_equal(painted(model, pair, kept, sampling), anew[0])
    assert rows
    rows.clear()
    assert np.array_equal(painted(model, pair, kept, sampling, seed=6), anew[1])
    assert not rows


@pytest.mark.parametrize(
    "other",
    [
        lambda it: {"pair": replace(it, reference_u8=it.reference_u8.flip(-1))},
        lambda it: {"pair": replace(it, hint_u8=255 - it.hint_u8)},
        lambda it: {"pair": replace(it, scene_depth_01=1 - it.scene_depth_01)},
        lambda it: {"weights": Weights(1.0, 0.5)},
        lambda it: {"sampling": replace(PLAIN, steps=9)},
        lambda it: {"model": with_other_branches()},
    ],
    ids=["token", "detail hint", "depth hint", "weight", "steps", "model"],
)
def test_another_place_token_weight_schedule_or_model_is_computed(
    model: Compositor, pair: Pair, rows: list[int], other: Callable[[Pair], dict[str, Any]]  # noqa: F811
) -> None:  # fmt: skip
    kept, given = Recent(2**30), {"model": model, "pair": pair, **other(pair)}
    expected = painted(kept=FORGETFUL, **given)
    painted(model, pair, kept)
    rows.clear()
    assert np.array_equal(painted(kept=kept, **given), expected)
    assert len(rows) >= 2 * (9 if "sampling" in given else 10) - 2  # t = 0 or 1 of two schedules may be equal


def test_they_are_kept_whole_or_not_at_all_and_not_with_offload(
    model: Compositor, pair: Pair, rows: list[int]  # noqa: F811
) -> None:  # fmt: skip
    whole = Recent(2**30)
    painted(model, pair, whole)
    assert len(whole.values) == PLAIN.steps
    one = whole.held // PLAIN.steps
    latent = 4 * 2 * (8 * 8 * 16 * 2 + 4 * 4 * 16 + 4 * 4 * 32 * 2)  # float32 of both halves, by hand
    assert one == latent
    for limit, count in ((whole.held, PLAIN.steps), (whole.held - 1, 1), (0, 0)):
        kept = Recent(limit)
        rows.clear()
        for _ in range(2):
            painted(model, pair, kept)
        assert len(rows) == 2 * (2 * PLAIN.steps - count)
        assert kept.held == count * one
    halves = replace(PLAIN, guidance_every=2)  # 5 and 10 evaluations of a row
    for limit, held in ((20 * one // 2, 15), (20 * one // 2 - 1, 6)):  # the larger half does not fit
        kept = Recent(limit)
        painted(model, pair, kept, halves)
        assert kept.held == held * one // 2
    kept = Recent(2**30)
    painted(model, pair, kept, offload=True)
    assert not kept.values


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_server_keeps_them_for_the_next_seed(tmp_path: Path, rows: list[int], speed: str) -> None:
    queue = app.make_queue(ServeSettings(out=tmp_path / "out", devices=("cpu",)))
    networks: JobNetworks = queue.workers[0]
    given = {"background": TENT / "room.png", "object": TENT / "object.png", "box": (0.3, 0.16, 0.5, 0.58)}
    settings = ComposeSettings(
        **given, background_depth=TENT / "room_depth.png", depth=(0.43, 0.51), steps=6, guidance=2.0,
        init="noise", speed=speed, device="cpu")  # fmt: skip
    images = []
    try:
        for source in (networks, networks, JobNetworks("cpu")):
            rows.clear()
            other = replace(settings, seed=len(images) and 7)
            images.append(composed(other, source.of(other), progress=False).images_u8[0])
            assert bool(rows) == (len(images) != 2)
    finally:
        queue.close()
    assert np.array_equal(images[1], images[2])
    assert not np.array_equal(images[0], images[1])
    assert 0 < networks.of(settings).residuals.held <= app.KEPT
    assert not source.of(settings).residuals.limit  # of a command
