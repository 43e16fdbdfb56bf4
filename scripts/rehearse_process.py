"""A command of `scripts.rehearse` in a process of its own, watched.

    python -m scripts.rehearse_process REPORT.json (-m MODULE | FILE.py) OPTIONS ...

REPORT: CPU seconds and type of every network that was loaded, CPU seconds of its calls, of stages.
"""

import json
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ldm import checkpoints, result


def types_of(network: nn.Module) -> list[str]:
    return sorted({str(weight.dtype).removeprefix("torch.") for weight in network.parameters()})


class Watch:
    """What networks do: every call of a module by no other module counts as one of a network."""

    def __init__(self) -> None:
        self.inside: list[float] = []  # when the calls began that are under way
        self.calls: dict[str, list[float]] = defaultdict(list)
        self.loads: dict[str, list[float]] = defaultdict(list)
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.types: dict[str, list[str]] = {}
        self.stages: dict[str, float] = {}
        register_module_forward_pre_hook(lambda *_: self.inside.append(time.process_time()))
        register_module_forward_hook(self.end, with_kwargs=True, always_call=True)

    def end(self, module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
        began, name = self.inside.pop(), type(module).__name__
        if self.inside:
            return
        self.calls[name].append(time.process_time() - began)
        self.types[name] = types_of(module)
        if options.get("input_ids") is not None:
            self.tokens[name].append(options["input_ids"].shape[-1])

    def timed(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(*args: Any, **options: Any) -> Any:
            began, network = time.process_time(), load(*args, **options)
            name = type(network).__name__
            self.loads[name].append(time.process_time() - began)
            self.types[name] = types_of(network)
            return network

        return loaded

    def report(self) -> dict[str, Any]:
        """Networks by name: CPU seconds of loads and calls, of the first and a later one, types, tokens."""
        rows: dict[str, Any] = {}
        least = 0.01 * sum(map(sum, self.calls.values()))
        for name in {**self.loads, **self.calls}:
            spent = self.calls[name]
            if self.loads[name] or sum(spent) >= least:
                rows[name] = {
                    "types": self.types[name], "load_s": [round(value, 2) for value in self.loads[name]],
                    "calls": len(spent), "calls_s": round(sum(spent), 2), "tokens": self.tokens[name][:2],
                    "first_s": round(spent[0], 2) if spent else None,
                    "later_s": round(median(spent[1:]), 3) if spent[1:] else None}  # fmt: skip
        return {"networks": rows, "stages_s": {name: round(spent, 2) for name, spent in self.stages.items()}}


def run_watched(place: str, *command: str) -> None:
    watch = Watch()
    checkpoints.load_part = watch.timed(checkpoints.load_part)  # before another module takes its name
    checkpoints.load_pretrained = watch.timed(checkpoints.load_pretrained)

    class Timer(result.StageTimer):
        def __init__(self) -> None:
            super().__init__()
            self.seconds = watch.stages

    result.StageTimer = Timer  # type: ignore[misc]
    time.perf_counter = time.process_time  # stages are in CPU seconds then
    sys.argv = [*command[1:]] if command[0] == "-m" else [*command]
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    finally:
        Path(place).write_text(json.dumps(watch.report()))


if __name__ == "__main__":
    run_watched(*sys.argv[1:])
