"""Control branches evaluated once for all samples, against the stock forward for every image.

    python -m benchmarks.control            (reduced width, seconds)

One guided sampling step for n samples. Stock: both ControlNets on all 2n latents, hint embedding included.
Ours: the branches once for the two halves of guidance, hint embedding not repeated. The UNet is the same.
"""

from functools import partial
from typing import Annotated

import typer

from benchmarks.harness import RESULTS, Out, best_seconds, write_results
from cldm.config import AutoencoderConfig, NetworkConfig
from ldm.settings.cli import run_module, single_app

REDUCED = NetworkConfig(
    size=(256, 256), block_channels=(64, 128, 256, 256), heads=(2, 4, 8, 8), token_width=256,
    identity_width=192, identity_layers=1, identity_heads=4, identity_swiglu=False, zero_conv_std=0.3,
    autoencoder=AutoencoderConfig("kl", (32, 32, 32, 32), 1, 4))  # fmt: skip


def measure_control(
    repeats: Annotated[int, typer.Option(help="timed calls per figure", min=1)] = 5,
    out: Out = RESULTS / "control.json",
) -> None:
    """Measure what shared control evaluations save: a row per number of samples."""
    import torch
    from diffusers import MultiControlNetModel

    from cldm.create import create_compositor
    from cldm.model import shared

    with torch.inference_mode():
        model = create_compositor(REDUCED).eval()
        size, side = REDUCED.size, REDUCED.size[0] // model.latent_space.factor
        draw = partial(torch.rand, generator=torch.Generator().manual_seed(0))
        reference, detail, depth = draw(1, 3, 224, 224), draw(1, 4, *size), draw(1, 3, *size)
        both = model.conditions(reference, detail, depth).with_null(model.identity.null())
        hints = detail.repeat(2, 1, 1, 1), depth.repeat(2, 1, 1, 1)
        t, nets = torch.tensor(500), MultiControlNetModel([model.detail.net, model.depth.net])

        def stock_step(x: torch.Tensor) -> torch.Tensor:
            """Every image runs both ControlNets with its own copy of tokens, detail hint and depth hint."""
            tokens, *images = (shared(value, len(x) // len(value)) for value in (both.tokens, *hints))
            down, mid = nets(x, t, tokens, images, [1.0, 1.0], return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return model.unet(x, t, tokens, **residuals).sample

        rows = []
        for count in (1, 4, 8):
            x = draw(2 * count, REDUCED.autoencoder.latent_channels, side, side)
            stock, ours = partial(stock_step, x), partial(model, x, t, both)
            taken = best_seconds({"stock": stock, "ours": ours}, repeats)
            times = {f"{name}_s": round(value, 3) for name, value in taken.items()}
            ratio, gap = round(taken["stock"] / taken["ours"], 3), (stock() - ours()).abs().max().item()
            rows.append({"samples": count, **times, "ratio": ratio, "largest_difference": gap})
    write_results(out, {"size": "reduced, 256 px, fp32", "rows": rows})


build_app = single_app(measure_control)

if __name__ == "__main__":
    run_module(build_app)
