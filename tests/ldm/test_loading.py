"""What a thread that builds, loads or draws changes in the process, other threads do not notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import CLIPTextModel

import ldm.checkpoints
from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.convert.plan import empty_networks
from cldm.create import create_compositor
from cldm.model import IdentityEncoder
from cldm.training.run import isolated_rng
from inpainting.models.text_to_image.load import load_inpainter
from ldm.checkpoints import RUNNING, drawing, in_precision, load_pretrained, loading, save_part
from ldm.metrics.backbones import Lpips, load_inception
from ldm.mllm.training import load_adapter, make_trainable
from ldm.settings.config import load_config
from ldm.training.run import make_accelerator
from ldm.training.settings import FitConfig, LoraSettings
from tests.inpainting.small_inpainter import small_text_encoder, small_tokenizer, small_unet
from tests.inpainting.small_paintings import write_inpainter
from tests.ldm import fit_job, small_metrics
from tests.ldm.small_mllm import build_small
from tests.ldm.test_threads import at_once
from tiny import llava
from tiny.depth.training import build_network
from tiny.inpainter.model import create
from tiny.settings import DepthNetwork, InpainterNetworks, SmallConfig
from tiny.world import SPECIAL

SMALL = NetworkConfig(
    size=(32, 32), reference_size=16, block_channels=(16, 32), heads=(2, 4), attention=(True, False),
    norm_groups=8, token_width=24, hint_channels=(4, 8, 8), identity_width=32, identity_layers=1,
    identity_heads=2, identity_patch=8, autoencoder=AutoencoderConfig("tiny", (8, 8, 8), 1, 4),
)  # fmt: skip
TINY_DEPTH = DepthNetwork(size=64, width=8, heads=(1, 1, 1, 1), depths=(1, 1, 1, 1), window=4, fusion=8)
TINY_LLAVA = SmallConfig(
    image=64, width=32, heads=2, stages=(8, 16, 16), blocks=(1, 1, 1), vision_layers=1, layers=2, hidden=48
)
TINY_INPAINTER = InpainterNetworks(
    latent_size=16, block_channels=(8, 16), heads=(1, 2), attention=(False, True), norm_groups=4,
    text_width=16, text_layers=1, text_heads=2,
)  # fmt: skip
LORA = LoraSettings(rank=2, dropout=0.5)
Build = Callable[[], Any]


def built_later(folder: Path, kind: str) -> Build:
    """What builds networks of this kind; the files that it needs are there."""
    if kind == "identity encoder":
        create_compositor(SMALL).identity.save_pretrained(folder)
        return lambda: IdentityEncoder.from_pretrained(folder)
    if kind in ("LoRA", "adapter"):
        model, other = (build_small("llava")[0] for _ in range(2))
        if kind == "LoRA":
            return lambda: make_trainable(model, LORA)
        make_trainable(other, LORA).save_pretrained(str(folder))  # type: ignore[operator]
        return lambda: load_adapter(model, folder)
    if kind == "inception":
        file = small_metrics.write_inception(folder / "a.pth")
        return lambda: load_inception(file)
    if kind == "lpips":
        file = small_metrics.write_squeezenet(folder / "a.pth")
        return lambda: Lpips.load(file)
    if kind == "inpainter":
        write_inpainter(folder)
        return lambda: load_inpainter(folder).unet
    plain: dict[str, Build] = {
        "compositor": lambda: create_compositor(SMALL),
        "networks without memory": lambda: nn.ModuleDict(empty_networks(SMALL)),
        "small depth": lambda: build_network(TINY_DEPTH, 0),
        "small llava": lambda: llava.create_llava(TINY_LLAVA, SPECIAL, 0),
        "small inpainter": lambda: create(TINY_INPAINTER, 0)[0],
    }
    return plain[kind]


KINDS = [
    "compositor", "networks without memory", "identity encoder", "LoRA", "adapter", "inpainter",
    "small depth", "small llava", "small inpainter", "inception", "lpips",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_built_while_no_other_thread_loads(tmp_path: Path, kind: str) -> None:
    build, mine = built_later(tmp_path, kind), threading.get_ident()
    locked: list[bool] = []

    def note(module: nn.Module, name: str, parameter: object) -> None:
        if threading.get_ident() == mine:
            locked.append(ldm.checkpoints._LOCK._is_owned())  # type: ignore[attr-defined]

    hook = register_module_parameter_registration_hook(note)
    try:
        build()
    finally:
        hook.remove()
    assert locked
    assert all(locked)


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_thread_loads_leaves_no_weight_empty(tmp_path: Path, kind: str) -> None:
    """The other thread is inside the library's patch of the process until this one has built, or waits."""
    build, meet = built_later(tmp_path, kind), threading.Barrier(2)

    def other() -> None:
        with loading(), init_empty_weights():
            meet.wait(10)
            with suppress(threading.BrokenBarrierError):
                meet.wait(0.2)  # in which the other one waits for this one

    def this() -> Any:
        meet.wait(10)
        model = build()
        with suppress(threading.BrokenBarrierError):
            meet.wait(0.01)
        return model

    _, model = at_once([other, this])
    expected = "meta" if kind == "networks without memory" else "cpu"
    assert {value.device.type for value in model.parameters()} == {expected}


FACTORIES: dict[str, Build] = {
    "zeros": lambda: torch.zeros(2),
    "randn": lambda: torch.randn(2, generator=torch.Generator()),
    "tensor": lambda: torch.tensor(0.5),
    "linspace": lambda: torch.linspace(0, 1, 3),
    "quotient of integers": lambda: torch.arange(3) / 2,
    "parameter": lambda: nn.Linear(2, 2).weight,
}


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers"])
def test_the_precision_of_what_a_thread_loads_is_its_own(tmp_path: Path, library: str) -> None:
    inside, done, seen = threading.Barrier(2), threading.Barrier(2), {}

    def meet(module: nn.Module, name: str, parameter: object) -> None:
        if threading.current_thread() is loader and not seen:
            seen["loaded"] = torch.get_default_dtype(), torch.zeros(2).dtype, torch.tensor(0.5).dtype
            inside.wait(10)
            done.wait(10)

    def load() -> None:
        if library == "torch":
            with loading():
                torch.set_default_dtype(torch.float16)
                model = nn.Linear(2, 2)
        elif library == "diffusers":
            model = load_pretrained(UNet2DConditionModel, tmp_path, torch_dtype=torch.float16)
        else:
            model = load_pretrained(CLIPTextModel, tmp_path, dtype=torch.float16)
        seen["parameters"] = {value.dtype for value in model.parameters()}

    if library == "diffusers":
        save_part(small_unet(), tmp_path)
    elif library == "transformers":
        save_part(small_text_encoder(small_tokenizer(tmp_path / "tokenizer")), tmp_path)
    before = torch.set_default_dtype, torch.get_default_dtype
    loader = threading.Thread(target=load)
    hook = register_module_parameter_registration_hook(meet)
    try:
        loader.start()
        inside.wait(10)
        made = {name: make().dtype for name, make in FACTORIES.items()}
        done.wait(10)
        loader.join()
    finally:
        hook.remove()
    assert made == dict.fromkeys(FACTORIES, torch.float32)
    assert seen == {"loaded": (torch.float16,) * 3, "parameters": {torch.float16}}
    assert (torch.set_default_dtype, torch.get_default_dtype) == before
    assert torch.get_default_dtype() == torch.float32


def test_precisions_nest_and_given_ones_stay() -> None:
    with loading():
        torch.set_default_dtype(torch.bfloat16)
        with loading():
            torch.set_default_dtype(torch.float16)
            assert torch.get_default_dtype() == torch.ones(1).dtype == torch.float16
            torch.set_default_dtype(torch.bfloat16)
        made = torch.ones(1), torch.ones(1, dtype=torch.float32), torch.arange(2), torch.tensor(True)
        assert torch.empty(size=(1,)).dtype == torch.bfloat16  # named, so without a first argument
        assert torch.get_default_dtype() == torch.bfloat16
    kinds = [value.dtype for value in made]
    assert kinds == [torch.bfloat16, torch.float32, torch.int64, torch.bool]
    assert torch.ones(1).dtype == torch.float32


def test_another_thread_may_still_change_the_precision_of_the_process() -> None:
    def change() -> None:
        torch.set_default_dtype(torch.float64)

    with loading():
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        assert torch.get_default_dtype() == torch.float32  # of this thread, until it is done
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)


def test_draws_of_threads_follow_from_their_seeds() -> None:
    def draw(seed: int) -> list[float]:
        with drawing(seed):
            return [
                (time.sleep(0.001), float(torch.rand(())))[1] for _ in range(20)
            ]  # others may come between

    state = torch.get_rng_state()
    alone = [draw(seed) for seed in range(4)]
    assert at_once([partial(draw, seed) for seed in range(4)]) == alone
    assert torch.equal(torch.get_rng_state(), state)


def test_lightning_sets_the_random_state_back_while_nobody_draws() -> None:
    """Its own keeps the state at one moment and sets it back at another."""
    kept, drawn, back = (threading.Event() for _ in range(3))

    def train() -> None:
        with isolated_rng():
            kept.set()
            drawn.wait(0.2)  # the other one waits meanwhile
        back.set()

    def draw() -> list[float]:
        kept.wait(10)
        with drawing(3):
            first = torch.rand(4).tolist()
            drawn.set()
            back.wait(10)
            return first + torch.rand(4).tolist()

    with drawing(3):
        alone = torch.rand(4).tolist() + torch.rand(4).tolist()
    assert at_once([train, draw])[1] == alone


@pytest.mark.parametrize("changes", [[], ["accumulate=2"], ["ema=0.9"]], ids=["plain", "sums", "average"])
def test_trainings_in_threads_end_like_one_alone(tmp_path: Path, changes: list[str]) -> None:
    alone_at, alone = fit_job.train(tmp_path / "alone", changes)
    names = ["a", "b", "c"]
    runs = at_once([partial(fit_job.train, tmp_path / name, changes) for name in names])
    for name, (newest, model) in zip(names, runs, strict=True):
        assert newest.name == alone_at.name
        assert all(map(torch.equal, model.state_dict().values(), alone.state_dict().values())), name
        rows, before = ((tmp_path / run / "metrics.csv").read_text().splitlines() for run in (name, "alone"))
        assert [row.rsplit(",", 1)[0] for row in rows] == [row.rsplit(",", 1)[0] for row in before]


def test_the_random_state_of_the_process_stays_as_it_is(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    fit_job.train(tmp_path, ["epochs=1"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("running", "wanted"), [("no", "bf16"), ("bf16", "no"), ("bf16", "fp16")])
def test_trainings_of_two_precisions_in_one_process_are_refused(
    tmp_path: Path, running: str, wanted: str
) -> None:
    def accelerator(precision: str) -> Any:
        settings = load_config(FitConfig, None, [f"precision={precision}", "device=cpu"])
        return make_accelerator(settings, tmp_path)

    assert accelerator("no").mixed_precision == "no"
    with in_precision(running):
        text = f"precision={wanted}: .* runs with precision={running}; wait"
        with pytest.raises(ValueError, match=text), in_precision(wanted):
            pass
        if running == "no" and wanted == "bf16":
            with pytest.raises(ValueError, match="precision=bf16: a training of this process runs"):
                accelerator("bf16")
            assert accelerator("no").mixed_precision == "no"
    assert RUNNING == []
    text = "precision=no: .* runs with precision=bf16"
    with pytest.raises(ValueError, match=text), in_precision("no", known="bf16"):
        pass  # another one began between the two
