"""Training steps of the full-size compositor: seconds and peak memory, random weights, random images.

    python -m benchmarks.full_size                                 (CPU: batch 1, bf16 weights, minutes)
    python -m benchmarks.full_size --batches 1,4,16 --steps 20 --precision bf16-mixed   (GPU)
    python -m benchmarks.full_size --precision bf16-mixed --frozen bf16 --no-states     (CPU with 24 GiB)

The step is that of run_train_bifrost.py with the published settings: UNet encoder and DINOv2-g are frozen;
control branches, UNet decoder and projector train; AdamW. Every row runs in a process of its own, without and
with gradient checkpointing; a row that runs out of memory says so. Without states the step is that of plain
gradient descent: its peak lacks AdamW's two numbers for each trained weight, which `states_gib` counts.
"""

import resource
import sys
import time
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, row_of_process, write_results
from cldm.config import NetworkConfig
from cldm.training.settings import CompositorTrainConfig
from ldm.settings.cli import run_module, single_app

SIDE, REFERENCE = 512, 224
GIB = 2**30
PRECISIONS = {"bf16-true": "bfloat16", "bf16-mixed": "float32", "32-true": "float32"}  # -> of the weights


def measure_row(
    batch: int, train: dict[str, Any], steps: int, precision: str, device: str, states: bool
) -> dict[str, Any]:
    """One row: median seconds of a step (the first is left out when there are more), peak memory."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    from cldm.create import create_compositor
    from cldm.training.module import CompositorModule

    times: list[float] = []  # at the start of the training and at the end of every step

    def tick(*ignored: Any, **also_ignored: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    clock = pl.callbacks.LambdaCallback(on_train_start=tick, on_train_batch_end=tick)
    torch.set_default_dtype(getattr(torch, PRECISIONS[precision]))
    model = create_compositor(NetworkConfig())
    torch.set_default_dtype(torch.float32)
    module = CompositorModule(model, CompositorTrainConfig(**train))
    if not states:
        optimizer = torch.optim.SGD(module.parameters_to_train, lr=1e-5)
        module.configure_optimizers = lambda: optimizer  # type: ignore[method-assign, assignment, return-value]
    draw = partial(torch.randint, 256, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = {name: draw((batch, 3, SIDE, SIDE)) for name in ("target_u8", "hint_u8")}
    noise = {
        **images, "reference_u8": draw((batch, 3, REFERENCE, REFERENCE)),
        "regions": (draw((batch, 1, SIDE, SIDE)) > 127).char(),
        "scene_depth_01": draw((batch, 1, SIDE, SIDE)) / 255,
        "dynamics": torch.zeros(batch, dtype=torch.int64)}  # fmt: skip
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else device, devices=1, max_steps=steps,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[clock], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader([noise] * steps, batch_size=None))  # type: ignore[arg-type]
    seconds = np.diff(times)
    step = float(np.quantile(seconds[1:] if steps > 1 else seconds, 0.5, method="higher"))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else resident
    trained = sum(weight.numel() for weight in module.parameters_to_train)
    return {
        "step_s": round(step, 3), "images_per_s": round(batch / step, 3), "peak_gib": round(peak / GIB, 2),
        "states_gib": 0 if states else round(trained * 2 * 4 / GIB, 2), "trained_parameters": trained,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "loss": round(float(module.last_loss), 4)}  # fmt: skip


def measure_training_steps(
    batches: Annotated[str, typer.Option(help="batch sizes, with commas")] = "1",
    steps: Annotated[int, typer.Option(help="steps of each row", min=1)] = 1,
    precision: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "bf16-true",
    frozen: Annotated[str, typer.Option(help="weights of frozen networks: fp32 or bf16")] = "fp32",
    states: Annotated[bool, typer.Option(help="with AdamW's states; without, they are counted")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    out: Out = RESULTS / "full_size.json",
) -> None:
    """Measure training steps of the full-size compositor."""
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    sizes = [int(size) for size in batches.split(",") if size.strip().isdigit()]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--batches must be whole numbers above 0 with commas, got {batches}")
    from ldm.device import pick_device

    where = pick_device(device).type
    rows = []
    for size, checkpointing in product(sizes, (False, True)):
        train = {"gradient_checkpointing": checkpointing, "frozen": frozen}
        numbers = row_of_process(measure_row, size, train, steps, precision, where, states)
        rows.append({"batch": size, **train, "precision": precision, **numbers})
    write_results(out, {"size": f"SD-2.1 and DINOv2-g, {SIDE} px", "rows": rows})


build_app = single_app(measure_training_steps)

if __name__ == "__main__":
    run_module(build_app)
