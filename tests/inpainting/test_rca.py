"""Rectified cross-attention: equal to the published formulation, on a stock UNet, whatever is done to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from einops import rearrange
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

from inpainting.models.text_to_image.rca import (
    attention_layers,
    install_rca,
    region_kwargs,
)
from inpainting.tokens import HIDDEN
from tests.cldm.released import named_weight
from tests.inpainting.small_inpainter import small_unet

LEVELS, LATENT = 3, (12, 16)


class Literal:
    """The published processor written down naively: a mask of ones and zeros, where, softmax, in float32."""

    def __init__(self, layout: Tensor, groups: Tensor, latent_hw: tuple[int, int]) -> None:
        self.layout, self.groups, self.latent_hw = layout.float(), groups, latent_hw

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        size = next(size for size in halvings(self.latent_hw) if size[0] * size[1] == hidden_states.shape[1])
        small = F.interpolate(self.layout, size=size, mode="nearest").flatten(2)  # (b, r + 1, n)
        seen = torch.stack([small[i, self.groups[i]] for i in range(len(small))])  # (b, t, n)
        q, k, v = (
            rearrange(value, "b n (h d) -> b h n d", h=attn.heads)
            for value in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        visible = rearrange(seen, "b t n -> b 1 n t") > 0
        scores = torch.where(visible, scores, torch.tensor(float("-inf")))
        read = rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)")
        return attn.to_out[1](attn.to_out[0](read))


def halvings(latent_hw: tuple[int, int]) -> list[tuple[int, int]]:
    h, w = latent_hw
    return [(-(-h // 2**level), -(-w // 2**level)) for level in range(LEVELS + 1)]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return install_rca(small_unet(seed=3))


@pytest.fixture(scope="module")
def masks() -> Tensor:
    """(2, 3, 96, 128): two overlapping regions; three, one of them of a single latent."""
    masks = torch.zeros(2, 3, 96, 128, dtype=torch.bool)
    masks[0, 0, 8:50, 8:70] = True
    masks[0, 1, 30:80, 40:100] = True
    masks[1, 0, :40, :40] = True
    masks[1, 1, 50:90, 60:120] = True
    masks[1, 2, 41:49, 57:65] = True
    return masks


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (2, 9, h, w), timesteps, text (2, 20, 16), owners (2, 20)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, *LATENT, generator=generator)
    text = torch.randn(2, 20, 16, generator=generator)
    owners = torch.zeros(2, 20, dtype=torch.long)
    owners[0, 1:5], owners[0, 5:9] = 1, 2
    owners[1, 1:4], owners[1, 4:6], owners[1, 6:10] = 1, 2, 3
    return x, torch.tensor([10, 700]), text, owners


def run(unet: UNet2DConditionModel, inputs: tuple[Tensor, ...], kwargs: dict | None) -> Tensor:
    x, t, text, _ = inputs
    return unet(x, t, encoder_hidden_states=text, cross_attention_kwargs=kwargs).sample


@pytest.fixture(scope="module")
def kwargs(masks: Tensor, inputs: tuple[Tensor, ...]) -> dict:
    return region_kwargs(masks, inputs[3], LATENT, levels=LEVELS)


@torch.no_grad()
def test_nearest_layout_equals_the_published_formulation(unet, masks, inputs):
    background = ~masks.any(1, keepdim=True)
    layout = torch.cat([torch.ones_like(background), masks | background], dim=1)
    literal = copy.deepcopy(unet)
    for name, layer in attention_layers(literal):
        if name.endswith("attn2"):
            layer.set_processor(Literal(layout, inputs[3], LATENT))
    ours = region_kwargs(masks, inputs[3], LATENT, levels=LEVELS, layout="nearest")
    expected = run(literal, inputs, None)
    torch.testing.assert_close(run(unet, inputs, ours), expected, atol=1e-5, rtol=0)
    assert (run(unet, inputs, None) - expected).abs().max() > 1e-2, "regions must matter"
    published = region_kwargs(layout[:, 1:], inputs[3], LATENT, levels=LEVELS, layout="nearest")
    torch.testing.assert_close(run(unet, inputs, published), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_golden_numbers_of_the_published_unet(test_data: Path):
    with np.load(test_data / "golden" / "rca_tiny.npz") as arrays:
        golden = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=9, out_channels=4, cross_attention_dim=32,
        attention_head_dim=[2, 4, 4, 4], block_out_channels=[32, 64, 64, 64],
        norm_num_groups=16, use_linear_projection=True,
    ).eval()  # fmt: skip
    unet.load_state_dict({key: named_weight(key, tuple(v.shape)) for key, v in unet.state_dict().items()})
    layout = torch.from_numpy(np.unpackbits(golden["in_layout"].numpy(), axis=-1)).bool()
    kwargs = region_kwargs(layout[:, 1:], golden["in_token_region"], (32, 32), levels=4, layout="nearest")
    given = golden["in_latents"], golden["in_timesteps"], golden["in_text"], golden["in_token_region"]
    install_rca(unet)
    torch.testing.assert_close(run(unet, given, kwargs), golden["out_rca"], atol=1e-4, rtol=0)
    torch.testing.assert_close(run(unet, given, None), golden["out_plain"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_without_regions_it_is_the_stock_network(unet, inputs):
    stock = small_unet(seed=3)
    stock.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(run(unet, inputs, None), run(stock, inputs, None), atol=0, rtol=0)
    everything = region_kwargs(torch.zeros(2, 0, 96, 128).bool(), inputs[3] * 0, LATENT, levels=LEVELS)
    torch.testing.assert_close(run(unet, inputs, everything), run(stock, inputs, None), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_pixel_reads_its_own_prompt_only(unet, masks, inputs, kwargs):
    """At one layer: another prompt's tokens change nothing inside a region, and something in background."""
    x, _, text, owners = inputs
    layer = next(layer for name, layer in attention_layers(unet) if name.endswith("attn2"))
    pixels = torch.randn(2, LATENT[0] * LATENT[1], 16, generator=torch.Generator().manual_seed(1))
    changed = torch.where((owners == 2)[..., None], text + 1, text)
    before, after = (layer(pixels, encoder_hidden_states=one, **kwargs) for one in (text, changed))
    moved = (before - after).abs().amax(-1) > 1e-6  # (b, n)
    cells = F.adaptive_max_pool2d(masks.float(), LATENT).flatten(2) > 0
    assert torch.equal(moved, cells[:, 1] | ~cells.any(1))


@torch.no_grad()
def test_guidance_halves(unet, masks, inputs, kwargs):
    x, t, text, owners = inputs
    doubled = torch.cat([x, x]), t.repeat(2), text.repeat(2, 1, 1), torch.cat([0 * owners, owners])
    both = run(unet, doubled, region_kwargs(masks.repeat(2, 1, 1, 1), doubled[-1], LATENT, levels=LEVELS))
    torch.testing.assert_close(both[:2], run(unet, inputs, None), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[2:], run(unet, inputs, kwargs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_several_images_per_prompt(unet, masks, inputs, kwargs):
    many = tuple(value.repeat_interleave(3, 0) for value in inputs)
    ours = run(unet, many, region_kwargs(masks.repeat_interleave(3, 0), many[-1], LATENT, levels=LEVELS))
    single = run(unet, inputs, kwargs)
    torch.testing.assert_close(ours, single.repeat_interleave(3, 0), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"this batch needs \(6, 1, 192, 20\)"):
        run(unet, many, kwargs)


def test_gradient_checkpointing_changes_nothing(inputs, kwargs):
    plain, saving = (install_rca(small_unet(seed=3)).train() for _ in range(2))
    saving.enable_gradient_checkpointing()
    outputs = [run(unet, inputs, kwargs) for unet in (plain, saving)]
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)
    for output in outputs:
        output.square().mean().backward()
    for (name, ours), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_lora_gets_gradients_through_regions(inputs, kwargs):
    unet = install_rca(small_unet(seed=3)).requires_grad_(False)
    before = run(unet, inputs, kwargs).detach()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=targets))
    output = run(unet, inputs, kwargs)
    torch.testing.assert_close(output.detach(), before, atol=1e-6, rtol=0)
    output.square().mean().backward()
    trained = {name: value for name, value in unet.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 4 * len(attention_layers(unet))
    assert all(value.grad.abs().sum() > 0 for name, value in trained.items() if "lora_B" in name)


@torch.no_grad()
def test_bfloat16_and_a_copy(unet, masks, inputs, kwargs):
    x, t, text, owners = inputs
    half = copy.deepcopy(unet).to(torch.bfloat16)
    small = region_kwargs(masks, owners, LATENT, levels=LEVELS, dtype=torch.bfloat16)
    output = run(half, (x.bfloat16(), t, text.bfloat16(), owners), small).float()
    reference = run(unet, inputs, kwargs)
    assert (output - reference).abs().max() < 0.1 * reference.abs().max()
    mixed = run(half, (x.bfloat16(), t, text.bfloat16(), owners), kwargs).float()
    torch.testing.assert_close(mixed, output, atol=0, rtol=0)
    half.set_attn_processor(AttnProcessor())
    run(unet, inputs, kwargs)
    with pytest.raises(ValueError, match="switched off"):
        run(half, inputs, small)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_network_is_the_same_and_keeps_its_guard(inputs, masks):
    unet = install_rca(small_unet(seed=3, block_out_channels=[16], attention_head_dim=2,
        down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"]))  # fmt: skip
    kwargs = region_kwargs(masks, inputs[3], LATENT, levels=1)
    compiled = torch.compile(unet, backend="eager")
    torch.testing.assert_close(run(compiled, inputs, kwargs), run(unet, inputs, kwargs), atol=1e-5, rtol=0)
    unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="switched off"):
        run(compiled, inputs, kwargs)


@torch.no_grad()
@pytest.mark.parametrize(
    "swap",
    [
        lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
        lambda unet: unet.fuse_qkv_projections(),
        lambda unet: attention_layers(unet)[-1][1].set_processor(AttnProcessor2_0()),
    ],
    ids=["set", "fused", "one layer"],
)
def test_swapped_processors_are_refused_and_mended(swap, inputs, kwargs):
    unet = install_rca(small_unet(seed=3))
    expected = run(unet, inputs, kwargs)
    swap(unet)
    with pytest.raises(ValueError, match=r"switched off: .*attn.* runs .*AttnProcessor.*install_rca"):
        run(unet, inputs, kwargs)
    run(unet, inputs, None)  # plain attention was not asked to be rectified
    torch.testing.assert_close(run(install_rca(unet), inputs, kwargs), expected, atol=1e-5, rtol=0)


@pytest.fixture
def backends() -> Iterator[None]:
    before = _AttentionBackendRegistry.get_active_backend()[0]  # of the whole process
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["flash", "_native_flash", "sage", "xformers", "flex"])
def test_other_attention_backends_are_refused_by_name(name, inputs, kwargs, backends):
    unet = install_rca(small_unet(seed=3))
    expected = run(unet, inputs, kwargs)
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName(name))
    with pytest.raises(ValueError, match=f"attention backend '{name}' takes no bias .*set_attention_backend"):
        run(unet, inputs, kwargs)
    run(unet, inputs, None)  # plain attention was not asked to be rectified
    unet.set_attention_backend("_native_math")
    torch.testing.assert_close(run(unet, inputs, kwargs), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_filling_between_images_is_read_by_nobody(unet, masks, inputs, kwargs):
    x, t, text, owners = inputs
    longer = torch.cat([text, torch.full((2, 7, 16), 9.0)], dim=1)
    marked = torch.cat([owners, torch.full((2, 7), HIDDEN)], dim=1)
    ours = region_kwargs(masks, marked, LATENT, levels=LEVELS)
    expected = run(unet, inputs, kwargs)
    torch.testing.assert_close(run(unet, (x, t, longer, marked), ours), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_region_without_any_token_is_no_hole(unet, inputs):
    """Every token belongs to region 1; the cells of region 2 then read all, and nothing becomes NaN."""
    masks = torch.zeros(2, 2, 96, 128, dtype=torch.bool)
    masks[:, 0, :48], masks[:, 1, 48:] = True, True
    alone = region_kwargs(masks, torch.ones(2, 20, dtype=torch.long), LATENT, levels=LEVELS)
    assert run(unet, inputs, alone).isfinite().all()


def test_what_does_not_fit_is_named(unet, masks, inputs, kwargs):
    with pytest.raises(ValueError, match="name region 3, there are masks of 2 images and 2 regions"):
        region_kwargs(masks[:, :2], inputs[3], LATENT, levels=LEVELS)
    x, t, text, owners = inputs
    with pytest.raises(ValueError, match=r"no region map for 96 latent cells, only for 192, 48, 12"):
        run(unet, (x[..., :8], t, text, owners), kwargs)
