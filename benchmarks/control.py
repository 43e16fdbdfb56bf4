"""Control branches evaluated once for all samples, against the stock forward for every image.

    python -m benchmarks.control            (reduced width, seconds)
    python -m benchmarks.control --full     (SD-2.1 size, random weights, bf16, minutes)

One guided sampling step for n samples. Stock: both ControlNets on all 2n latents, hint embedding included.
Ours: the branches once for the two halves of guidance, hint embedding not repeated. The UNet is the same.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.harness import RESULTS, best_seconds, write_report
from cldm.create import AutoencoderConfig, NetworkConfig, create_compositor
from cldm.model import Compositor, fuse, shared
from ldm.settings.cli import run_module, single_app

logger = logging.getLogger(__name__)

REDUCED = NetworkConfig(
    size=(256, 256), block_channels=(64, 128, 256, 256), heads=(2, 4, 8, 8), token_width=256,
    identity_width=192, identity_layers=1, identity_heads=4, identity_swiglu=False, zero_conv_std=0.3,
    autoencoder=AutoencoderConfig("kl", (32, 32, 32, 32), 1, 4),
)  # fmt: skip
FULL = NetworkConfig(identity_layers=1, zero_conv_std=0.3)


def stock_step(model: Compositor, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
    """Every image runs both ControlNets with its own copy of tokens, detail hint and depth hint."""
    times = len(x) // len(conditions[0])
    tokens, detail, depth = (shared(value, times) for value in conditions)
    maps = []
    for net, hint in ((model.detail.net, detail), (model.depth.net, depth)):
        down, mid = net(x, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
        maps.append([*down, mid])
    fused = fuse(maps[0], maps[1], 1.0, 1.0)
    return model.unet(
        x, t, encoder_hidden_states=tokens, down_block_additional_residuals=fused[:-1],
        mid_block_additional_residual=fused[-1],
    ).sample  # fmt: skip


@torch.inference_mode()
def compare_steps(config: NetworkConfig, dtype: torch.dtype, samples: list[int], repeats: int) -> list[dict]:
    """One row per number of samples: seconds of a step, ratio, largest difference of the predictions."""
    model = create_compositor(config).to(dtype).eval()
    side = config.size[0] // model.latent_space.factor
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(dtype)

    reference, detail, depth = draw(1, 3, 224, 224), draw(1, 4, *config.size), draw(1, 3, *config.size)
    both = model.conditions(reference, detail, depth).with_null(model.identity.null())
    hints = detail.repeat(2, 1, 1, 1), depth.repeat(2, 1, 1, 1)
    t = torch.tensor(500)
    rows = []
    for count in samples:
        x = draw(2 * count, config.autoencoder.latent_channels, side, side)
        stock, shared_step = partial(stock_step, model, x, t, both.tokens, *hints), partial(model, x, t, both)
        taken = best_seconds({"stock": stock, "ours": shared_step}, repeats, clock=time.perf_counter)
        gap = (stock() - shared_step()).abs().max().item()
        times = {f"{name}_s": round(value, 3) for name, value in taken.items()}
        ratio = round(taken["stock"] / taken["ours"], 3)
        rows.append({"samples": count, **times, "ratio": ratio, "largest_difference": gap})
        logger.info("%s", rows[-1])
    return rows


def measure_control(
    full: Annotated[bool, typer.Option(help="SD-2.1 size with random weights in bf16")] = False,
    repeats: Annotated[int, typer.Option(help="timed calls per figure", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="default benchmarks/results/control[_full].json")] = None,
) -> None:
    """Measure what shared control evaluations save."""
    config, dtype = (FULL, torch.bfloat16) if full else (REDUCED, torch.float32)
    size = "SD-2.1, 512 px, bf16" if full else "reduced, 256 px, fp32"
    rows = compare_steps(config, dtype, [1, 4, 8], repeats)
    write_report(out or RESULTS / f"control{'_full' if full else ''}.json", {"size": size, "rows": rows})


build_app = single_app(measure_control)

if __name__ == "__main__":
    run_module(build_app)
