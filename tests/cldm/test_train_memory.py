"""What training holds and computes anew: gradient checkpointing, frozen networks in bf16, latents."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention

from cldm.create import create_compositor
from cldm.model import load_compositor
from cldm.training.module import CompositorModule
from cldm.training.run import train as run_training
from cldm.training.settings import CompositorTrainConfig, RunConfig
from datasets.examples import PairDataset, collate_pairs
from datasets.pairs import model_inputs
from datasets.sources.rendered import RenderedScenes
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train import run_config, scenes

__all__ = ["scenes"]  # a fixture


def forward_calls(scenes: Path, pretrained: Path | None, trainable: str, on: bool) -> dict[str, int]:
    """How often a layer of each network runs in a step with its gradient."""
    model = create_compositor(SMALL, 1) if pretrained is None else load_compositor(pretrained)[0]
    config = CompositorTrainConfig(trainable=trainable, gradient_checkpointing=on)
    net = CompositorModule(model, config).model
    calls: Counter[str] = Counter()
    parts = {"up": net.unet.up_blocks, "down": net.unet.down_blocks, "detail": net.detail.net.down_blocks,
             "depth": net.depth.net.down_blocks, "identity": net.identity.encoder}  # fmt: skip
    for name, part in parts.items():
        layer = next(m for m in part.modules() if isinstance(m, ResnetBlock2D | Dinov2Attention))
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    dataset = PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)
    batch = model_inputs(collate_pairs([dataset[0]]))
    conditions = net.conditions(batch["reference_01"], batch["detail_pm1"], batch["depth_01"])
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    net(x, torch.tensor([500]), conditions).square().mean().backward()
    return dict(calls)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("trainable", "twice"),
    [("all", {"up", "down", "detail", "depth", "identity"}), ("published", {"up", "detail", "depth"})],
)
def test_what_trains_is_computed_anew_also_with_pretrained(
    scenes, small_compositor, fresh: bool, trainable: str, twice: set[str]
) -> None:
    pretrained = None if fresh else small_compositor
    plain = forward_calls(scenes, pretrained, trainable, False)
    again = forward_calls(scenes, pretrained, trainable, True)
    assert set(plain.values()) == {1}
    assert twice <= {name for name, count in again.items() if count == 2}


def test_frozen_weights_in_bf16_are_saved_as_they_were(scenes, small_compositor, tmp_path) -> None:
    config = run_config(tmp_path / "run", scenes, 2)
    config = replace(
        config, pretrained=small_compositor, train=replace(config.train, frozen="bf16"),
        trainer=replace(config.trainer, precision="bf16-mixed", sample_every=1, probe_every=1),
    )  # fmt: skip
    run_training(config)
    before, after = load_compositor(small_compositor)[0], load_compositor(config.out / "model")[0]
    frozen = {name for name, weight in CompositorModule(before, config.train).model.named_parameters()
              if not weight.requires_grad}  # fmt: skip
    old, new = load_compositor(small_compositor)[0].state_dict(), after.state_dict()
    changed = {name for name in new if not torch.equal(new[name], old[name].half().float())}  # saved in fp16
    assert changed
    assert frozen
    assert sorted(changed & frozen) == []


@pytest.mark.parametrize("trainable", ["published", "all"])
def test_frozen_weights_alone_are_in_bf16(trainable: str) -> None:
    config = CompositorTrainConfig(frozen="bf16", trainable=trainable)
    module = CompositorModule(create_compositor(SMALL, 0), config)
    for name, weight in module.model.named_parameters():
        assert weight.dtype is (torch.float32 if weight.requires_grad else torch.bfloat16), name
    assert module.model.latent_space.vae.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "trainer", [{"precision": "32-true"}, {"precision": "16-mixed"}, {"strategy": "fsdp", "devices": 2}]
)
def test_bf16_weights_want_bf16_arithmetic(trainer) -> None:
    config = RunConfig(Path("run"))
    with pytest.raises(
        ValueError, match=r"train.frozen=bf16 needs trainer.precision=bf16-mixed and ddp, got"
    ):
        replace(
            config, train=CompositorTrainConfig(frozen="bf16"), trainer=replace(config.trainer, **trainer)
        )


def test_damaged_latents_are_named_at_the_first_step_only(scenes: Path, monkeypatch) -> None:
    module = CompositorModule(create_compositor(SMALL, 0), CompositorTrainConfig())
    monkeypatch.setattr(type(module), "trainer", property(lambda self: type("One", (), {"world_size": 1})))
    monkeypatch.setattr(type(module), "global_rank", 0)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    batch = collate_pairs([PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)[0]])
    nan = lambda image, generator=None: torch.full((1, 4, 8, 8), float("nan"))  # noqa: E731
    with monkeypatch.context() as broken:
        broken.setattr(module.model.latent_space, "raw", nan)
        with pytest.raises(ValueError, match=r"autoencoder \(VAE\)"):
            module.training_step(batch, 0)
        assert module.training_step(batch, 1).isnan()
