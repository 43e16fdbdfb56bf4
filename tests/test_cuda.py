"""What a GPU changes: precision, offload, batches, training, resuming, several devices."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cldm.create import create_compositor
from cldm.training.module import CompositorModule
from cldm.training.run import train as run_training
from cldm.training.settings import CompositorTrainConfig
from compose.models import load_models
from compose.settings import ComposeSettings
from datasets.examples import PairDataset, collate_pairs
from datasets.sources.rendered import RenderedScenes
from ldm.device import pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.images import read_image
from ldm.mllm.model import Mllm
from llava_bifrost.locator import Locator, LocatorConfig
from tests.batches import batch, job, write
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train import run_config, scenes, weights
from tests.cldm.test_train_run import command
from tests.conftest import ROOT
from tests.images import Case, room
from tests.ldm.small_mllm import build_small

__all__ = ["scenes"]  # a fixture
pytestmark = pytest.mark.cuda

DEVICE = "cuda"
LR = 1e-3  # of run_config
FP32_DEPTH, HALF_DEPTH = 1e-3, 0.1  # of the range, most pixels: rounding of another device, of 8 to 11 bits


def difference(case: Case, *flags: str) -> float:
    """Mean difference in levels of the composite on the GPU from that on the CPU in float32."""
    assert case.run("--device", "cpu", "--dtype", "fp32") == 0
    before_u8 = read_image(case.out).rgb_u8
    assert case.run("--device", DEVICE, "--overwrite", *flags) == 0
    return float(np.abs(case.unchanged_outside(room()).astype(float) - before_u8).mean())


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 0.5), ("fp16", 3), ("bf16", 6), ("auto", 3)])
@pytest.mark.parametrize("flags", [(), ("--offload",), ("--num-samples", "3")], ids=str)
def test_composites_are_those_of_the_cpu(case: Case, dtype: str, most: float, flags: tuple[str, ...]) -> None:
    if flags[:1] == ("--num-samples",):
        assert case.run("--device", DEVICE, "--dtype", dtype, *flags) == 0
        assert len(list(case.out.parent.glob("*.png"))) == 3
        return
    assert difference(case, "--dtype", dtype, *flags) < most


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_depth_is_that_of_the_cpu(small_depth_network: Path, dtype: str) -> None:
    kind = pick_dtype(dtype, torch.device(DEVICE), small_depth_network)
    images = [room(), room(64, 96), room()]
    ours = DepthEstimator.load(small_depth_network, device=DEVICE, dtype=kind).estimate_many(images)
    theirs = DepthEstimator.load(small_depth_network).estimate_many(images)
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).mean() < (FP32_DEPTH if dtype == "fp32" else HALF_DEPTH)


@pytest.mark.parametrize("family", ["llava", "llava_words"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_locator_answers_in_every_precision(family: str, dtype: torch.dtype) -> None:
    answers = []
    for device, kind in (("cpu", torch.float32), (DEVICE, dtype)):
        model, processor = build_small(family)
        config = LocatorConfig(decimals=2) if family.endswith("words") else LocatorConfig()
        locator = Locator(Mllm(model.to(device, kind), processor, Path()), config)
        answers.append(locator.locate(room(), "Place the dog behind the sofa")[0])
    if dtype is torch.float32:
        assert answers[0].text == answers[1].text
    x0, y0, x1, y1 = answers[1].location.box01_xyxy
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("offload", [False, True])
def test_networks_are_where_offload_says(case: Case, offload: bool) -> None:
    from compose.pipeline import compose

    settings = ComposeSettings(
        background=case.folder / "room.png", object=case.folder / "thing.png",
        object_mask=case.folder / "mask.png", box=(0.3, 0.2, 0.7, 0.9), depth=(0.6,), model=case.model,
        depth_model=case.depth_model, device=DEVICE, offload=offload,
    )  # fmt: skip
    models = load_models(settings)
    compose(settings, models, progress=False)
    at = {parameter.device.type for parameter in models.compositor.parameters()}
    assert at == {"cpu" if offload else DEVICE}
    if offload and DEVICE == "cuda":
        depth = next(model for key, model in models.loaded.items() if isinstance(model, DepthEstimator))
        assert next(depth.model.parameters()).device.type == "cpu"


def test_a_batch_makes_every_job(case: Case) -> None:
    write(case, *(job(case, name=f"j{k}", seed=k, device=DEVICE) for k in range(3)))
    assert batch(case) == 0
    assert len(list((case.folder / "many").glob("j*.png"))) == 3


def training(out: Path, scenes: Path, steps: int, **trainer):
    config = run_config(out, scenes, steps)
    accelerator = "gpu" if DEVICE == "cuda" else DEVICE
    return replace(config, trainer=replace(config.trainer, accelerator=accelerator, **trainer))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_that_goes_on_ends_as_one_without_pause(tmp_path: Path, scenes: Path, precision: str) -> None:
    run_training(training(tmp_path / "whole", scenes, 4, precision=precision, save_every=2))
    run_training(training(tmp_path / "parts", scenes, 2, precision=precision, save_every=2))
    run_training(training(tmp_path / "parts", scenes, 4, precision=precision, save_every=2))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in whole.items():
        # Sums in another order turn the sign of some of Adam's first steps, which are as large as the rate.
        assert (parts[name].float() - value.float()).abs().mean() < 0.2 * LR, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_train(tmp_path: Path, scenes: Path, strategy: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    config = training(tmp_path / "run", scenes, 2, devices=2, strategy=strategy)
    # A process of its own, as Lightning starts the command line again for the second device.
    subprocess.run(command(config, tmp_path), cwd=ROOT, check=True)
    assert (tmp_path / "run/model/unet").is_dir()


def test_no_step_waits_for_the_device(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = CompositorModule(create_compositor(SMALL, 0), CompositorTrainConfig()).to(DEVICE)
    monkeypatch.setattr(type(module), "trainer", property(lambda self: type("One", (), {"world_size": 1})))
    monkeypatch.setattr(type(module), "global_rank", 0)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    examples = collate_pairs([PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)[0]])
    examples = {name: value.to(DEVICE) for name, value in examples.items()}
    module.training_step(examples, 0).backward()  # checks the autoencoder once
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.training_step(examples, 1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
