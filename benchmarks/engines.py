"""What the networks of a sampling step cost by torch, torch.compile and OpenVINO: true size, random weights,
one row.

    OMP_NUM_THREADS=1 python -m benchmarks.engines [--dtype fp32]      (a quarter of an hour on one core)

CPU seconds of one thread at 512 px, measured in turn; a guided step runs every part for two rows. Each part
is a process of its own. In bf16 torch computes as the compositor does: channels-last, attention by blocks.
"""

import resource
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, row_of_process, write_results
from ldm.files import read_json
from ldm.settings.cli import run_module, single_app

SIZE = "SD-2.1, 512 px, one row"
ENGINES = "torch", "openvino", "torch_compile"
PARTS = {
    "control branch": ("detail", None, False),
    "UNet": ("unet", 0, False),
    "UNet, reused, first level": ("unet", 0, True),
    "UNet, reused, last layer": ("unet", 1, True),
}


def cpu_s() -> float:
    """Of this process, and of compilers that it ran."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measure_part(kind: tuple[str, int | None, bool], dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds of export, compiling and each run; the largest difference, of an output's largest value."""
    import torch

    from cldm import create
    from cldm.config import NetworkConfig
    from cldm.graphs import PRECISIONS, GraphPart, GraphStep, compile_blocks, compiled, write_graph
    from cldm.model import ControlBranch
    from ldm.device import DTYPES, FasterAttention
    from ldm.reuse import predict_in_parts

    torch.set_num_threads(1)
    part, config, half = GraphPart(*kind), NetworkConfig(zero_conv_std=1.0), DTYPES[dtype]
    torch.set_default_dtype(half)
    control = ControlBranch(create.create_control(config, 4))
    network = control if part.layers is None else create.create_unet(config)
    torch.set_default_dtype(torch.float32)
    width, side = config.block_channels[0], config.size[0] // 8
    t, tokens = torch.tensor(500.0), torch.rand(1, 257, config.token_width)
    more: list[torch.Tensor] = []
    with torch.inference_mode():
        x = torch.rand(1, 4 if part.layers is not None else width, side, side)
        if part.layers is not None:
            words, hint = tokens.to(half), torch.rand(1, width, side, side, dtype=half)
            residuals = control(hint, t, words)
            if part.reuses:
                _, deep = predict_in_parts(network, x.to(half), t, words, residuals, None, part.layers)
                residuals = [deep, *residuals]
            more = [value.float() for value in residuals]
    del control
    inputs = [value.clone() for value in (x, t, tokens, *more)]
    step, ticks = GraphStep(network.eval(), part), [time.process_time()]
    with TemporaryDirectory() as folder:
        write_graph(step, inputs, Path(folder) / "graph.xml")
        ticks.append(time.process_time())
        graph = compiled(Path(folder) / "graph.xml", PRECISIONS[half])
        ticks.append(time.process_time())
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_blocks(network)
        torch._inductor.config.force_disable_caches = True  # so that the first run compiles
        torch._inductor.config.compile_threads = 1  # in this process
        row: dict[str, Any] = {"export_cpu_s": round(ticks[1] - ticks[0], 3)}
        row |= {"compile_cpu_s": round(ticks[2] - ticks[1], 3)}
        row |= {f"{name}_cpu_s": [] for name in ENGINES}
        for _ in range(repeats + 1):
            ticks = [cpu_s()]
            with torch.inference_mode(), FasterAttention():
                with torch.compiler.set_stance("force_eager"):
                    expected = step(*inputs[:3], inputs[3:])
                ticks.append(cpu_s())
                found = graph([value.numpy() for value in inputs])
                ticks.append(cpu_s())
                in_place = step(*inputs[:3], inputs[3:])
            ticks.append(cpu_s())
            for name, after, before in zip(ENGINES, ticks[1:], ticks, strict=False):
                row[f"{name}_cpu_s"].append(round(after - before, 2))
    found = [torch.from_numpy(found[index]) for index in range(len(expected))]
    for name, values in (("difference", found), ("torch_compile_difference", in_place)):
        pairs = zip(values, expected, strict=True)
        row[name] = round(max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs), 4)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    best = [min(row[f"{name}_cpu_s"][1:]) for name in ENGINES]  # the first one warms up, or compiles
    row["times_faster"], row["torch_compile_times_faster"] = (round(best[0] / each, 2) for each in best[1:])
    return row


def measure_engines(
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    only: Annotated[
        str, typer.Option(help="parts whose name contains this; the others of the file stay")
    ] = "",
    repeats: Annotated[int, typer.Option(help="runs of each, in turn, after a first one", min=1)] = 3,
    out: Out = RESULTS / "engines.json",
) -> dict[str, Any]:
    """Measure a step's networks by each engine."""
    if dtype not in ("bf16", "fp32"):
        raise ValueError(f"--dtype must be bf16 or fp32, got {dtype}")
    rows: dict[str, Any] = read_json(out)["rows"] if only and out.is_file() else {}
    for name, kind in PARTS.items():
        if only not in name:
            continue
        rows[name] = row_of_process(measure_part, kind, dtype, repeats)
        body = {"size": SIZE, "dtype": dtype, "openvino": version("openvino"), "rows": rows}
        write_results(out, body, overwrite=True)
    return rows


build_app = single_app(measure_engines)

if __name__ == "__main__":
    run_module(build_app)
