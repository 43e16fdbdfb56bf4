"""What the networks of a sampling step cost by torch, torch.compile and OpenVINO: true size, random weights,
one row.

    OMP_NUM_THREADS=1 python -m benchmarks.engines [--dtype fp32]      (a quarter of an hour on one core)

CPU seconds of one thread at 512 px, measured in turn; a guided step runs every part for two rows. In bf16
torch computes as the compositor does: channels-last, attention by blocks.
"""

import resource
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, row_of_process, write_results
from ldm.files import read_json
from ldm.settings.cli import run_module, single_app

SIZE = "SD-2.1, 512 px, one row"
ENGINES = "torch", "openvino", "torch_compile"
PARTS = {  # layers of the UNet's last block that run on kept features
    "control branch": None,
    "UNet": None,
    "UNet, reused, first level": 0,
    "UNet, reused, last layer": 1,
}


def cpu_s() -> float:
    """Of this process, and of compilers that it ran."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measure_parts(parts: list[str], dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds of the export, and `rows`: of compiling and each run, and the largest relative difference."""
    import torch

    from cldm import create
    from cldm.config import NetworkConfig
    from cldm.graphs import PRECISIONS, WholeStep, compile_blocks, compiled, write_graph
    from cldm.model import ControlBranch
    from ldm.device import DTYPES, FasterAttention
    from ldm.reuse import predict_in_parts

    torch.set_num_threads(1)
    config, half = NetworkConfig(zero_conv_std=1.0), DTYPES[dtype]
    torch.set_default_dtype(half)
    branches = {"detail": ControlBranch(create.create_control(config, 4)),
                "depth": ControlBranch(create.create_control(config, 3))}  # fmt: skip
    step = WholeStep(SimpleNamespace(unet=create.create_unet(config), **branches)).eval()
    torch.set_default_dtype(torch.float32)
    width, side = config.block_channels[0], config.size[0] // 8
    hint, x = torch.rand(1, width, side, side), torch.rand(1, 4, side, side)
    t, tokens, rows = torch.tensor(500.0), torch.rand(1, 257, config.token_width), {}
    with TemporaryDirectory() as folder, torch.inference_mode(), FasterAttention():
        start, path = cpu_s(), Path(folder) / "graph.xml"
        write_graph(step, (side, side, 257), path)
        export, size = round(cpu_s() - start, 1), round(path.with_suffix(".bin").stat().st_size / 2**30, 2)
        residuals = step.detail(hint.to(half), t, tokens.to(half))
        _, entering = predict_in_parts(step.unet, x.to(half), t, tokens.to(half), residuals, None)
        step.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_blocks(step)
        torch._inductor.config.force_disable_caches = True  # so that the first run compiles
        torch._inductor.config.compile_threads = 1  # in this process
        for name in parts:
            layers, start = PARTS[name], cpu_s()
            if name == "control branch":
                names, given = step.names("detail"), {"detail": hint, "tokens": tokens}
                run = partial(step.detail, hint.to(half), t, tokens.to(half))
            else:
                names, deep = ["prediction"], [] if layers is None else [entering[-layers]]
                given = {"x": x, "tokens": tokens} | dict(zip(step.names("residual"), residuals, strict=True))
                given |= dict(zip(step.names("entering")[-(layers or 0) :], deep, strict=False))
                values = x.to(half), t, tokens.to(half), residuals, deep[0] if deep else None, layers or 0
                run = partial(predict_in_parts, step.unet, *values)
            graph = compiled(path, PRECISIONS[half], names, list(given))
            arrays = {key: value.float().numpy() for key, value in {**given, "t": t}.items()}
            rows[name] = {"compile_cpu_s": round(cpu_s() - start, 2)}
            rows[name] |= measure_part(run, partial(graph, arrays), names, repeats)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return {"export_cpu_s": export, "export_gib": size, "peak_gib": peak, "rows": rows}


def measure_part(
    run: Callable[[], Any], graph: Callable[[], Any], names: list[str], repeats: int
) -> dict[str, Any]:
    """Seconds of each run by torch, the graph and compiled blocks; the largest relative differences."""
    import torch

    row: dict[str, Any] = {f"{engine}_cpu_s": [] for engine in ENGINES}
    for _ in range(repeats + 1):
        ticks = [cpu_s()]
        with torch.compiler.set_stance("force_eager"):
            expected = run()
        ticks.append(cpu_s())
        found = graph()
        ticks.append(cpu_s())
        in_place = run()
        ticks.append(cpu_s())
        for engine, after, before in zip(ENGINES, ticks[1:], ticks, strict=False):
            row[f"{engine}_cpu_s"].append(round(after - before, 2))
    by_graph = [torch.from_numpy(found[name]) for name in names]
    for key, values in (("difference", by_graph), ("torch_compile_difference", in_place)):
        pairs = list(zip(values, expected, strict=False))[: len(names)]
        row[key] = round(max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs), 4)
    best = [min(row[f"{engine}_cpu_s"][1:]) for engine in ENGINES]  # the first one warms up, or compiles
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
    body = row_of_process(measure_parts, [name for name in PARTS if only in name], dtype, repeats)
    rows |= body.pop("rows", {})
    body = {"size": SIZE, "dtype": dtype, "openvino": version("openvino"), **body, "rows": rows}
    write_results(out, body, overwrite=True)
    return rows


build_app = single_app(measure_engines)

if __name__ == "__main__":
    run_module(build_app)
