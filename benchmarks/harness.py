"""What the benchmarks share: timing in turn, rows from processes of their own, the report with hardware."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.device import describe_hardware
from ldm.files import json_bytes, write_atomic

log = logging.getLogger(__name__)

RESULTS = Path("benchmarks/results")


def best_seconds(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Best of `repeats` of each function, in turn, after a warm-up: what else runs only adds time.

    clock: by default processor time of this process on the CPU, wall-clock time on a GPU
    """
    cpu = torch.device(device).type == "cpu"
    clock = clock or (time.process_time if cpu else time.perf_counter)
    best = dict.fromkeys(functions, float("inf"))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            if not cpu:
                torch.cuda.synchronize(device)
            started = clock()
            function()
            if not cpu:
                torch.cuda.synchronize(device)
            if repeat:
                best[name] = min(best[name], clock() - started)
    return best


def row_of_process(module: str, *flags: str) -> dict[str, Any]:
    """The JSON row that another process of a benchmark prints; its peak memory is its own. Or `failed`."""
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    killed = done.returncode in (-9, 137) or "out of memory" in done.stderr.lower()
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"failed": "out of memory" if killed else last[:200]}


def write_report(out: Path, body: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Write the numbers with the hardware that they were measured on, and log them."""
    text = json_bytes({"hardware": describe_hardware(device), **body})
    write_atomic(out, text)
    log.info("%s", text.decode())
