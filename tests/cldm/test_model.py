"""Architecture and control branches: sizes of the published system, equality with the stock forward."""

import dataclasses

import pytest
import torch
from torch import nn

from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.create import create_autoencoder, create_compositor, create_control, create_identity, create_unet
from cldm.model import Compositor, ControlBranch
from cldm.training.module import CompositorModule
from cldm.training.settings import CompositorTrainConfig
from tests.cldm.small import SMALL


@pytest.fixture(scope="module")
def model() -> Compositor:
    return create_compositor(SMALL, seed=1).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (2, 4, 8, 8),
        "reference_01": (2, 3, 16, 16),
        "detail_pm1": (2, 4, 32, 32),
        "depth_01": (2, 3, 32, 32),
    }
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_full_size_is_the_published_architecture() -> None:
    config = NetworkConfig()
    with torch.device("meta"):
        assert count(create_unet(config)) == 865_910_724
        assert count(create_control(config, 4)) == 364_228_384
        assert count(create_control(config, 3)) == 364_228_240
        assert count(create_autoencoder(config.autoencoder)) == 83_653_863
        assert (
            count(create_identity(dataclasses.replace(config, reference_size=518)).encoder) == 1_136_480_768
        )
        assert count(create_identity(config).projector) == 1536 * 1024 + 1024


@torch.no_grad()
def test_branch_equals_stock_forward_for_any_latent(
    model: Compositor, inputs: dict[str, torch.Tensor]
) -> None:
    branch, timestep = model.detail, torch.tensor([10, 900])
    tokens = model.identity(inputs["reference_01"])
    ours = branch(branch.embed(inputs["detail_pm1"]), timestep, tokens)
    for latent in (inputs["x"], inputs["x"] * -7 + 3):
        down, mid = branch.net(
            latent,
            timestep,
            encoder_hidden_states=tokens,
            controlnet_cond=inputs["detail_pm1"],
            return_dict=False,
        )
        for mine, stock in zip(ours, [*down, mid], strict=True):
            torch.testing.assert_close(mine, stock, atol=1e-6, rtol=0)


def test_branch_zeroes_the_first_convolution_of_any_net() -> None:
    net = create_control(SMALL, 4)
    assert net.conv_in.weight.abs().sum() > 0
    branch = ControlBranch(net)
    assert branch.net.conv_in.weight.abs().sum() == 0
    assert not branch.net.conv_in.weight.requires_grad


@torch.no_grad()
def test_zero_convolutions_leave_the_unet_alone(inputs: dict[str, torch.Tensor]) -> None:
    published = create_compositor(dataclasses.replace(SMALL, zero_conv_std=0.0), seed=2).eval()
    conditions = published.conditions(inputs["reference_01"], inputs["detail_pm1"], inputs["depth_01"])
    timestep = torch.tensor([3, 700])
    plain = published.unet(inputs["x"], timestep, encoder_hidden_states=conditions.tokens).sample
    torch.testing.assert_close(published(inputs["x"], timestep, conditions), plain, atol=1e-6, rtol=0)


@torch.no_grad()
def test_one_control_evaluation_serves_all_samples(
    model: Compositor, inputs: dict[str, torch.Tensor]
) -> None:
    one = model.conditions(inputs["reference_01"][:1], inputs["detail_pm1"][:1], inputs["depth_01"][:1])
    x = torch.cat([inputs["x"], inputs["x"] + 1])
    together = model(x, torch.tensor(500), one)
    singles = torch.cat([model(row[None], torch.tensor(500), one) for row in x])
    torch.testing.assert_close(together, singles, atol=2e-6, rtol=0)


@torch.no_grad()
def test_guided_halves_equal_two_calls(model: Compositor, inputs: dict[str, torch.Tensor]) -> None:
    one = model.conditions(inputs["reference_01"][:1], inputs["detail_pm1"][:1], inputs["depth_01"][:1])
    null = dataclasses.replace(one, tokens=model.identity.null())
    both = model(torch.cat([inputs["x"]] * 2), torch.tensor(500), one.with_null(model.identity.null()))
    torch.testing.assert_close(both[:2], model(inputs["x"], torch.tensor(500), null), atol=2e-6, rtol=0)
    torch.testing.assert_close(both[2:], model(inputs["x"], torch.tensor(500), one), atol=2e-6, rtol=0)


@torch.no_grad()
def test_null_identity_is_the_zero_image(model: Compositor) -> None:
    torch.testing.assert_close(model.identity.null(3)[2:], model.identity(torch.zeros(1, 3, 16, 16)))


@torch.no_grad()
def test_weights_scale_each_branch(model: Compositor, inputs: dict[str, torch.Tensor]) -> None:
    t = torch.tensor(500)
    given = model.conditions(inputs["reference_01"], inputs["detail_pm1"], inputs["depth_01"])
    detail, depth = model.residuals(t, given, 1.0, 0.0), model.residuals(t, given, 0.0, 1.0)
    for weights in ((1.0, 1.0), (0.0, 0.5)):
        for fused, near, far in zip(model.residuals(t, given, *weights), detail, depth, strict=True):
            torch.testing.assert_close(fused, weights[0] * near + weights[1] * far)


def test_parts_that_do_not_fit_are_refused(model: Compositor) -> None:
    other = create_control(dataclasses.replace(SMALL, token_width=32), 4)
    with pytest.raises(ValueError, match="detail branch token width is 32, must be 24"):
        Compositor(model.unet, other, model.depth.net, model.identity, model.latent_space, {})


@pytest.mark.parametrize("which", ["published", "all"])
def test_first_convolution_stays_zero_over_20_steps(which: str, inputs: dict[str, torch.Tensor]) -> None:
    model = create_compositor(SMALL, seed=3)
    module = CompositorModule(model, CompositorTrainConfig(trainable=which))
    optimizer = torch.optim.AdamW(module.parameters_to_train, lr=1e-2)
    before = model.detail.net.controlnet_mid_block.weight.clone()
    for _ in range(20):
        conditions = model.conditions(inputs["reference_01"], inputs["detail_pm1"], inputs["depth_01"])
        model(inputs["x"], torch.tensor(5), conditions).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for branch in (model.detail, model.depth):
        assert branch.net.conv_in.weight.abs().max() == 0
        assert branch.net.conv_in.bias.abs().max() == 0
    assert not torch.equal(before, model.detail.net.controlnet_mid_block.weight)


def test_published_groups_freeze_the_unet_encoder() -> None:
    model = create_compositor(SMALL)
    module = CompositorModule(model, CompositorTrainConfig(train_projector=False))
    trained = set(map(id, module.parameters_to_train))
    assert not any(id(p) in trained for p in model.unet.down_blocks.parameters())
    assert not any(id(p) in trained for p in model.identity.parameters())
    assert all(id(p) in trained for p in model.unet.up_blocks.parameters())
    assert not any(id(p) in trained for p in model.latent_space.parameters())


def test_autoencoder_and_hint_stack_must_agree() -> None:
    with pytest.raises(ValueError, match="they must agree"):
        dataclasses.replace(SMALL, autoencoder=AutoencoderConfig("tiny", (8, 8), 1, 4))
