"""The formulations of rectified cross-attention that `benchmarks.rca` compares, and the rows of its table.

Legend: b images, r regions, h heads, n latent cells, t tokens, d channels of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import best_seconds
from inpainting.models.text_to_image.rca import (
    Regions,
    attention_layers,
    attention_sizes,
    install_rca,
    region_kwargs,
)

TOKENS, HEAD = 77, 64
HEADS = {64: 5, 32: 10, 16: 20, 8: 20}  # side of the latent -> heads of Stable Diffusion 2 there
IMAGE, REGIONS = 512, 5
# A quarter of the width of Stable Diffusion 2, same number of layers and cells.
REDUCED = {
    "sample_size": 64, "in_channels": 9, "out_channels": 4, "cross_attention_dim": 256,
    "block_out_channels": (80, 160, 320, 320), "attention_head_dim": (5, 10, 20, 20), "norm_num_groups": 16,
    "use_linear_projection": True,
}  # fmt: skip


def published_attention(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, owners: Tensor) -> Tensor:
    """q (b, h, n, d), k and v (b, h, t, d), layout (b, r + 1, n) of 0 and 1, owners (b, t)."""
    b, h, n, d = q.shape
    bias = torch.zeros(n, k.shape[2], dtype=q.dtype).to(q.device)  # made on the CPU in every layer
    scores = q @ k.transpose(-2, -1) * d**-0.5
    seen = layout.gather(1, owners[:, :, None].expand(-1, -1, n)).transpose(1, 2)[:, None]
    seen = seen.expand(b, h, n, k.shape[2]).bool()
    scores = torch.where(seen, scores.float(), torch.tensor(float("-inf"), device=q.device)).to(q.dtype)
    scores = scores + bias
    return torch.dropout(scores.softmax(dim=-1), 0.0, train=True) @ v


class Published:
    """The naive formulation as a processor of one resolution after the other, on the stock UNet."""

    def __init__(self, layout: Tensor, owners: Tensor, sides: list[int]) -> None:
        self.layout, self.owners, self.sides = layout, owners, {side * side: side for side in sides}

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **ignored: object
    ) -> Tensor:
        side = self.sides[hidden_states.shape[1]]
        layout = F.interpolate(self.layout.float(), size=(side, side), mode="nearest").flatten(2)
        text = encoder_hidden_states
        projected = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k, v = (rearrange(value, "b n (h d) -> b h n d", h=attn.heads) for value in projected)
        read = published_attention(q, k, v, layout, self.owners)
        return attn.to_out[1](attn.to_out[0](rearrange(read, "b h n d -> b n (h d)")))


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Most memory that a call holds at once, on top of what there was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare_formulations(
    functions: dict[str, Callable[[], Tensor]], repeats: int, device: torch.device, what: dict[str, Any]
) -> dict[str, Any]:
    """One row: seconds and MiB of each formulation, and what the published one takes in units of ours."""
    taken = best_seconds(functions, repeats, device)
    memory = {name: peak_bytes(function, device) for name, function in functions.items()}
    return {
        **what,
        "seconds": {name: round(value, 5) for name, value in taken.items()},
        "peak_mib": {name: round(value / 2**20, 2) for name, value in memory.items()},
        "time_ratio": round(taken["published"] / taken["ours"], 2),
        "memory_ratio": round(memory["published"] / memory["ours"], 2),
        "time_over_no_bias": round(taken["ours"] / taken["none"], 2),
        "largest_difference": float((functions["published"]() - functions["ours"]()).detach().abs().max()),
    }


def layer_row(
    side: int, masks: Tensor, owners: Tensor, regions: Regions, train: bool, repeats: int
) -> dict[str, Any]:
    """The attention of one layer, projections excluded, without or with its gradient."""
    generator, device = torch.Generator().manual_seed(1), owners.device
    b, heads, n = len(owners), HEADS[side], side * side
    bias = regions[n]
    draw = [torch.randn(b, heads, length, HEAD, generator=generator) for length in (n, TOKENS, TOKENS)]
    q, k, v = (value.to(device, bias.dtype).requires_grad_(train) for value in draw)
    layout = F.interpolate(full_layout(masks).float(), size=(side, side), mode="nearest").flatten(2)

    def run(attention: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            read = attention()
            if train:
                torch.autograd.grad(read.sum(), (q, k, v))
            return read

        return call

    functions = {
        "published": run(lambda: published_attention(q, k, v, layout, owners)),
        "ours": run(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)),
        "none": run(lambda: F.scaled_dot_product_attention(q, k, v)),
    }
    what = {"what": "attention of one layer", "latent": f"{side}x{side}", "batch": b, "heads": heads,
            "gradient": train}  # fmt: skip
    return compare_formulations(functions, repeats, device, what)


def unet_row(masks: Tensor, owners: Tensor, regions: Regions, repeats: int) -> dict[str, Any]:
    """A whole UNet call at 64 x 64 latents, a quarter of the published width."""
    torch.manual_seed(0)
    device, dtype = owners.device, next(iter(regions.values())).dtype
    ours = install_rca(UNet2DConditionModel(**REDUCED).eval().to(device, dtype))
    naive = UNet2DConditionModel(**REDUCED).eval().to(device, dtype)
    naive.load_state_dict(ours.state_dict())
    processor = Published(full_layout(masks), owners, list(HEADS))
    for name, layer in attention_layers(naive):
        if name.endswith("attn2"):
            layer.set_processor(processor)
    x = torch.randn(len(owners), 9, 64, 64).to(device, dtype)
    text = torch.randn(len(owners), TOKENS, 256).to(device, dtype)
    t = torch.tensor(500, device=device)
    kwargs = {"regions": regions}
    functions = {
        "published": lambda: naive(x, t, text).sample,
        "ours": lambda: ours(x, t, text, cross_attention_kwargs=kwargs).sample,
        "none": lambda: ours(x, t, text).sample,
    }
    what = {"what": "UNet call, quarter width", "latent": "64x64", "batch": len(owners)}
    return compare_formulations(functions, repeats, device, what)


def full_layout(masks: Tensor) -> Tensor:
    """The published layout (b, r + 1, H, W): everything, then each mask or background."""
    background = ~masks.any(dim=1, keepdim=True)
    return torch.cat([torch.ones_like(background), masks | background], dim=1)


def attention_rows(batch: int, repeats: int, place: torch.device) -> dict[str, Any]:
    """Data type, rows, and what building the bias takes."""
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    # Boxes of random size, as in the published data.
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(batch, REGIONS, IMAGE, IMAGE, dtype=torch.bool)
    for mask in masks.flatten(0, 1):
        h, w = draw(60, 260, (2,)).tolist()
        y, x = (int(draw(IMAGE - side, ())) for side in (h, w))
        mask[y : y + h, x : x + w] = True
    masks = masks.to(place)
    # BOS, twelve tokens for each region, the rest shared.
    owners = torch.zeros(batch, TOKENS, dtype=torch.long, device=place)
    owners[:, 1 : 1 + 12 * REGIONS] = torch.arange(1, REGIONS + 1).repeat_interleave(12)

    def build() -> Regions:
        kwargs = region_kwargs(masks, owners, (64, 64), levels=4, layout="nearest", dtype=dtype)
        return kwargs["regions"]

    regions = build()
    assert list(regions) == [h * w for h, w in attention_sizes((64, 64), 4)]
    rows = [layer_row(64, masks, owners, regions, True, repeats)]
    with torch.inference_mode():
        rows = [layer_row(side, masks, owners, regions, False, repeats) for side in HEADS] + rows
        rows.append(unet_row(masks, owners, regions, max(2, repeats // 3)))
        built = best_seconds({"build": build}, repeats, place)["build"]
    kept = sum(bias.untyped_storage().nbytes() for bias in regions.values())
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "bias_built_once_per_call": {"seconds": round(built, 5), "kept_mib": round(kept / 2**20, 2)},
    }
