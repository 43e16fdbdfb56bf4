"""Threads that load networks and use them at the same time give what one thread gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, DPTForDepthEstimation, PreTrainedModel

from compose import ComposeSettings, compose, load_models
from ldm.checkpoints import drawing, empty_parameters, load_part, load_pretrained, loading, save_part
from ldm.experts.depth import DepthEstimator, DepthInput
from ldm.settings.config import load_config
from ldm.training.run import make_accelerator
from ldm.training.settings import FitConfig
from tests.images import Case
from tests.inpainting.small_inpainter import small_text_encoder, small_tokenizer, small_unet
from tests.ldm.test_experts import MAKERS, image
from tests.ldm.test_experts import save as save_depth
from tiny.loop import autocast

TOGETHER = 4  # threads


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """The results of functions that start together, four at a time."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


@pytest.mark.parametrize("kind", ["same", "nested", "after an error"])
def test_only_the_thread_that_asks_creates_empty_parameters(kind: str) -> None:
    inside, seen = threading.Barrier(2), {}

    def other() -> None:
        inside.wait(10)
        seen["other"] = nn.Linear(2, 3)
        inside.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    if kind == "after an error":
        with pytest.raises(ValueError, match="failed"), empty_parameters():
            raise ValueError("failed")
    with empty_parameters():
        inside.wait(10)
        norm = nn.BatchNorm1d(4)
        inner = nn.Sequential(nn.Linear(2, 2)) if kind == "nested" else nn.Linear(2, 2)
        inside.wait(10)
    thread.join()
    assert {parameter.device.type for parameter in [*inner.parameters(), *norm.parameters()]} == {"meta"}
    assert {buffer.device.type for buffer in norm.buffers()} == {"cpu"}
    assert seen["other"].weight.device.type == "cpu"
    assert torch.isfinite(seen["other"](torch.ones(1, 2))).all()
    assert nn.Linear(2, 2).weight.device.type == "cpu"
    assert nn.Module.register_parameter.__module__ == "torch.nn.modules.module"


def folders(root: Path) -> dict[str, Callable[[], nn.Module]]:
    """Loaders of networks of three libraries' kinds, in two precisions."""
    tokenizer = small_tokenizer(root / "tokenizer")
    save_part(small_unet(), root / "unet", torch.float32)
    save_part(small_text_encoder(tokenizer), root / "text", torch.float32)
    save_depth(MAKERS["dpt"](), root / "depth")
    return {
        "unet by part": lambda: load_part(UNet2DConditionModel, root / "unet"),
        "unet by its library": lambda: load_pretrained(
            UNet2DConditionModel, root / "unet", torch_dtype=torch.float16
        ),
        "text encoder by part": lambda: load_part(CLIPTextModel, root / "text"),
        "text encoder by its library": lambda: load_pretrained(
            CLIPTextModel, root / "text", dtype=torch.float16
        ),
        "depth": lambda: load_pretrained(DPTForDepthEstimation, root / "depth", dtype=torch.bfloat16),
    }


def contents(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Every parameter and buffer, those that are not stored too."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (value.dtype, value.device.type, value.float().sum().item()) for name, value in named}


def test_networks_loaded_by_several_threads_are_those_loaded_alone(tmp_path: Path) -> None:
    loaders = folders(tmp_path)
    alone = {name: contents(load()) for name, load in loaders.items()}
    before = (torch.get_default_dtype(), nn.Module.register_parameter, PreTrainedModel.tie_weights)
    names = [name for _ in range(4) for name in loaders]
    for name, model in zip(names, at_once([loaders[name] for name in names]), strict=True):
        assert contents(model) == alone[name], name
    assert (torch.get_default_dtype(), nn.Module.register_parameter, PreTrainedModel.tie_weights) == before


@contextmanager
def never_twice(inside: list[int]) -> Iterator[None]:
    inside.append(1)
    assert len(inside) == 1, "two threads load"
    yield
    inside.pop()


@pytest.mark.parametrize("decorated", [True, False])
def test_one_thread_at_a_time_loads_and_may_load_parts(decorated: bool) -> None:
    inside: list[int] = []

    def work() -> int:
        with never_twice(inside), loading():
            return threading.get_ident()

    def in_a_block() -> int:
        with loading():
            return work()

    assert len(at_once([loading()(work) if decorated else in_a_block] * 20)) == 20


SIZES = [(64, 64), (48, 90), (120, 60), (64, 16), (96, 128)]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_depth_of_mixed_sizes_in_threads_is_the_depth_alone(tmp_path: Path, kind: str) -> None:
    save_depth(MAKERS[kind](), tmp_path)
    estimator = DepthEstimator.load(tmp_path)
    images = [image(*SIZES[index % len(SIZES)], seed=index) for index in range(20)]
    alone = [estimator.estimate(each) for each in images]
    held = dict(vars(estimator))
    found = at_once([lambda each=each: estimator.estimate(each) for each in images])  # type: ignore[misc]
    assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))
    assert vars(estimator) == held


def test_a_depth_network_that_waits_keeps_its_own_size() -> None:
    """Two images of different aspect, each held between the body of the network and its neck."""
    model, meet = MAKERS["dpt"](), threading.Barrier(2)
    estimator = DepthEstimator(model, DepthInput(size=64, multiple_of=16))
    images = image(64, 128), image(128, 64)
    alone = [estimator.estimate(each) for each in images]

    def wait(module: nn.Module, inputs: object, output: object) -> None:
        meet.wait(10)

    model.dpt.register_forward_hook(wait)
    found = at_once([lambda each=each: estimator.estimate(each) for each in images])  # type: ignore[misc]
    assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))


def test_requests_load_every_network_once_and_paint_the_bytes_of_one_alone(case: Case, monkeypatch) -> None:
    import compose.models as module

    loaded: list[str] = []
    real, real_depth = module.load_compositor, module.DepthEstimator.load
    monkeypatch.setattr(module, "load_compositor", lambda *a: (loaded.append("compositor"), real(*a))[1])
    monkeypatch.setattr(
        module.DepthEstimator, "load", lambda *a, **k: (loaded.append("depth"), real_depth(*a, **k))[1]
    )
    names = {"background": "room.png", "object": "thing.png", "object_mask": "mask.png"}
    files = {name: case.folder / file for name, file in names.items()}
    jobs = [
        ComposeSettings(
            **files, box=(0.3, 0.2, 0.7, 0.9), depth=(0.6,), steps=1 + seed % 2, seed=seed,
            background_depth=case.folder / "depth.png" if seed % 3 else None,
            model=case.model, depth_model=case.depth_model,
        )
        for seed in range(8)
    ]  # fmt: skip
    models = load_models(jobs[0])
    found = at_once([lambda job=job: compose(job, models, progress=False) for job in jobs])  # type: ignore[misc]
    assert sorted(loaded) == ["compositor", "depth"]
    for job, result in zip(jobs, found, strict=True):
        assert np.array_equal(result.images_u8, compose(job, models, progress=False).images_u8)


@pytest.mark.parametrize("kind", ["small networks", "fine-tuning"])
def test_the_autocast_of_another_training_changes_no_gradient(tmp_path: Path, kind: str) -> None:
    """A weight that is read twice: the gradients of both reads are added in float32, whoever runs beside."""
    settings = load_config(FitConfig, None, ["precision=bf16", "device=cpu"])
    start = {
        "small networks": partial(autocast, "cpu"),
        "fine-tuning": make_accelerator(settings, tmp_path).autocast,
    }[kind]
    with drawing(0):
        layer, rows = nn.Linear(64, 64), torch.randn(2, 32, 64)

    def beside() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            pass

    def gradient(between: Callable[[], None]) -> torch.Tensor:
        layer.zero_grad()
        with start():
            first = layer(rows[0]).float().sum()
            thread = threading.Thread(target=between)
            thread.start()
            thread.join()
            total = first + layer(rows[1]).float().square().sum()
        total.backward()
        return layer.weight.grad.clone()

    assert torch.equal(gradient(lambda: None), gradient(beside))
