"""Rectified cross-attention: one fused call with a bias built once, against the published formulation.

    OMP_NUM_THREADS=1 python -m benchmarks.rca [--batch 4] [--device cuda] [--out FILE]

Published, written naively: in every layer scores, a gather of the layout, `where` in float32, softmax,
dropout and product as separate arrays. Ours: scaled_dot_product_attention with the bias of that resolution,
one array for all heads, layers and steps. "none" is the fused call without any bias, the floor of both.
Peak memory is what a call allocates on top of its inputs.

Legend: b images, r regions, h heads, n latent cells, t tokens, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, best_seconds, write_results
from ldm.settings.cli import run_module, single_app

if TYPE_CHECKING:
    import torch
    from diffusers.models.attention_processor import Attention
    from torch import Tensor

    from inpainting.models.text_to_image.rca import Regions

TOKENS, HEAD = 77, 64
HEADS = {64: 5, 32: 10, 16: 20, 8: 20}  # side of the latent -> heads of Stable Diffusion 2 there
IMAGE, REGIONS = 512, 5
REDUCED = {  # a quarter of the width of Stable Diffusion 2, same number of layers and cells
    "sample_size": 64, "in_channels": 9, "out_channels": 4, "cross_attention_dim": 256,
    "block_out_channels": (80, 160, 320, 320), "attention_head_dim": (5, 10, 20, 20), "norm_num_groups": 16,
    "use_linear_projection": True}  # fmt: skip


def published_attention(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, owners: Tensor) -> Tensor:
    """q (b, h, n, d), k and v (b, h, t, d), layout (b, r + 1, n) of 0 and 1, owners (b, t)."""
    import torch

    b, h, n, d = q.shape
    bias = torch.zeros(n, k.shape[2], dtype=q.dtype).to(q.device)  # made on the CPU in every layer
    scores = q @ k.transpose(-2, -1) * d**-0.5
    seen = layout.gather(1, owners[:, :, None].expand(-1, -1, n)).transpose(1, 2)[:, None]
    seen = seen.expand(b, h, n, k.shape[2]).bool()
    scores = torch.where(seen, scores.float(), torch.tensor(float("-inf"), device=q.device)).to(q.dtype)
    return torch.dropout((scores + bias).softmax(dim=-1), 0.0, train=True) @ v


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Most memory that a call holds at once, on top of what there was before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held, default=0)


def compare_formulations(
    functions: Mapping[str, Callable[[], Tensor]], repeats: int, device: torch.device, what: dict[str, Any]
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
    side: int, layout: Tensor, owners: Tensor, regions: Regions, train: bool, repeats: int
) -> dict[str, Any]:
    """The attention of one layer, projections excluded, without or with its gradient."""
    import torch
    from torch.nn import functional as F

    generator, device = torch.Generator().manual_seed(1), owners.device
    b, heads, n = len(owners), HEADS[side], side * side
    bias = regions[n]
    draw = [torch.randn(b, heads, length, HEAD, generator=generator) for length in (n, TOKENS, TOKENS)]
    q, k, v = (value.to(device, bias.dtype).requires_grad_(train) for value in draw)
    layout = F.interpolate(layout, size=(side, side), mode="nearest").flatten(2)

    def run(attention: Callable[[], Tensor]) -> Tensor:
        read = attention()
        if train:
            torch.autograd.grad(read.sum(), (q, k, v))
        return read

    functions = {
        "published": partial(run, lambda: published_attention(q, k, v, layout, owners)),
        "ours": partial(run, lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)),
        "none": partial(run, lambda: F.scaled_dot_product_attention(q, k, v)),
    }
    what = {"what": "attention of one layer", "latent": f"{side}x{side}", "batch": b, "heads": heads,
            "gradient": train}  # fmt: skip
    return compare_formulations(functions, repeats, device, what)


def unet_row(layout: Tensor, owners: Tensor, regions: Regions, repeats: int) -> dict[str, Any]:
    """A whole UNet call at 64 x 64 latents, a quarter of the published width."""
    import torch
    from diffusers import UNet2DConditionModel
    from einops import rearrange
    from torch.nn import functional as F

    from inpainting.models.text_to_image.rca import attention_layers, install_rca

    torch.manual_seed(0)
    device, dtype = owners.device, next(iter(regions.values())).dtype
    ours = install_rca(UNet2DConditionModel(**REDUCED).eval().to(device, dtype))
    naive = UNet2DConditionModel(**REDUCED).eval().to(device, dtype)
    naive.load_state_dict(ours.state_dict())

    def published(
        attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **ignored: object
    ) -> Tensor:
        side, text = math.isqrt(hidden_states.shape[1]), encoder_hidden_states
        resized = F.interpolate(layout, size=(side, side), mode="nearest").flatten(2)
        projected = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k, v = (rearrange(value, "b n (h d) -> b h n d", h=attn.heads) for value in projected)
        read = published_attention(q, k, v, resized, owners)
        return attn.to_out[1](attn.to_out[0](rearrange(read, "b h n d -> b n (h d)")))

    for name, layer in attention_layers(naive):
        if name.endswith("attn2"):
            layer.set_processor(published)
    x = torch.randn(len(owners), 9, 64, 64).to(device, dtype)
    text = torch.randn(len(owners), TOKENS, 256).to(device, dtype)
    t = torch.tensor(500, device=device)
    functions = {
        "published": lambda: naive(x, t, text).sample,
        "ours": lambda: ours(x, t, text, cross_attention_kwargs={"regions": regions}).sample,
        "none": lambda: ours(x, t, text).sample,
    }
    what = {"what": "UNet call, quarter width", "latent": "64x64", "batch": len(owners)}
    return compare_formulations(functions, repeats, device, what)


def measure_attention(
    batch: Annotated[int, typer.Option(help="images in one call", min=1)] = 4,
    repeats: Annotated[int, typer.Option(help="timed calls of each formulation", min=1)] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Out = RESULTS / "rca.json",
) -> None:
    """Measure time and peak memory of rectified attention against the published formulation."""
    import torch

    from inpainting.models.text_to_image.rca import attention_sizes, region_kwargs
    from ldm.device import pick_device

    place = pick_device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    # Boxes of random size, as in the published data.
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(batch, REGIONS, IMAGE, IMAGE, dtype=torch.bool)
    for mask in masks.flatten(0, 1):
        h, w = draw(60, 260, (2,)).tolist()
        y, x = (int(draw(IMAGE - side, ())) for side in (h, w))
        mask[y : y + h, x : x + w] = True
    masks = masks.to(place)
    # The published layout (b, r + 1, H, W): everything, then each mask or background.
    background = ~masks.any(dim=1, keepdim=True)
    layout = torch.cat([torch.ones_like(background), masks | background], dim=1).float()
    # BOS, twelve tokens for each region, the rest shared.
    owners = torch.zeros(batch, TOKENS, dtype=torch.long, device=place)
    owners[:, 1 : 1 + 12 * REGIONS] = torch.arange(1, REGIONS + 1).repeat_interleave(12)
    build = partial(region_kwargs, masks, owners, (64, 64), levels=4, layout="nearest", dtype=dtype)
    regions = build()["regions"]
    assert list(regions) == [h * w for h, w in attention_sizes((64, 64), 4)]
    rows = [layer_row(64, layout, owners, regions, True, repeats)]
    with torch.inference_mode():
        rows = [layer_row(side, layout, owners, regions, False, repeats) for side in HEADS] + rows
        rows.append(unet_row(layout, owners, regions, max(2, repeats // 3)))
        built = best_seconds({"build": build}, repeats, place)["build"]
    kept = sum(bias.untyped_storage().nbytes() for bias in regions.values())
    built_once = {"seconds": round(built, 5), "kept_mib": round(kept / 2**20, 2)}
    body = {"dtype": str(dtype).removeprefix("torch."), "rows": rows, "bias_built_once_per_call": built_once}
    write_results(out, body, place)


build_app = single_app(measure_attention)

if __name__ == "__main__":
    run_module(build_app)
