"""Rectified cross-attention: one fused call with a bias built once, against the published formulation.

    OMP_NUM_THREADS=1 python -m benchmarks.rca [--batch 4] [--device cuda] [--out FILE]

Published, written naively: in every layer scores, a gather of the layout, `where` in float32, softmax,
dropout and product as separate arrays. Ours: scaled_dot_product_attention with the bias of that resolution,
one array for all heads, layers and steps. "none" is the fused call without any bias, the floor of both.

Peak memory is what a call allocates on top of its inputs. Times alternate between the formulations and are
the best of the repeats: whatever else runs on the machine only adds time.
"""

from typing import Annotated

import typer

from benchmarks.harness import RESULTS, Out, write_results
from ldm.settings.cli import run_module, single_app


def measure_attention(
    batch: Annotated[int, typer.Option(help="images in one call", min=1)] = 4,
    repeats: Annotated[int, typer.Option(help="timed calls of each formulation", min=1)] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Out = RESULTS / "rca.json",
) -> None:
    """Measure time and peak memory of rectified attention against the published formulation."""
    from benchmarks.attention import attention_rows
    from ldm.device import pick_device

    place = pick_device(device)
    write_results(out, attention_rows(batch, repeats, place), place)


build_app = single_app(measure_attention)

if __name__ == "__main__":
    run_module(build_app)
