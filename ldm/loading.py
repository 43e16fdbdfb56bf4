"""One thread at a time builds and loads networks, for which libraries replace functions of the process,
change its default dtype and draw from its random generator; the others notice nothing of it.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_LOCK = threading.RLock()
_EMPTY = threading.local()
CPU = torch.device("cpu")
RUNNING: list[str] = []  # precisions of the trainings of this process
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor}
FACTORIES |= {torch.rand, torch.randn, torch.arange, torch.linspace}


class _ThreadDtype(TorchFunctionMode):
    """The default dtype of the thread that loads; torch has one for all threads, which go on computing."""

    def __init__(self) -> None:
        super().__init__()
        self.owner, self.real = threading.get_ident(), (torch.set_default_dtype, torch.get_default_dtype)
        self.dtype = self.usual = torch.get_default_dtype()

    def set(self, dtype: torch.dtype) -> None:
        if threading.get_ident() == self.owner:
            self.dtype = dtype
        else:
            self.real[0](dtype)

    def get(self) -> torch.dtype:
        return self.dtype if threading.get_ident() == self.owner else self.real[1]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if self.dtype == self.usual or function not in FACTORIES or (kwargs or {}).get("dtype"):
            return made
        like = made.dtype != self.usual or any(hasattr(value, "dtype") for value in args[:1])
        return made if like else made.to(self.dtype)


@contextmanager
def loading() -> Iterator[None]:
    """One thread at a time builds or loads networks; also a decorator."""
    with _LOCK, _ThreadDtype() as mode:
        torch.set_default_dtype, torch.get_default_dtype = mode.set, mode.get
        try:
            yield
        finally:
            torch.set_default_dtype, torch.get_default_dtype = mode.real


@contextmanager
def drawing(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Draws without a generator, such as first weights and dropout, follow from `seed`; others wait."""
    with _LOCK, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def in_precision(precision: str, known: str | None = None) -> Iterator[None]:
    """ValueError where a training of this process has another: accelerate knows one for all of them."""
    if others := {*RUNNING, known or precision} - {precision}:
        wrong = f"a training of this process runs with precision={others.pop()}"
        raise ValueError(f"precision={precision}: {wrong}; wait for its end, or use a process of its own")
    RUNNING.append(precision)
    try:
        yield
    finally:
        RUNNING.remove(precision)


@functools.cache
def _watch_parameters() -> None:
    """Once in a process: torch's hook on new parameters, which leaves those of other threads alone."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if not getattr(_EMPTY, "wanted", False):
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]  # torch says None only


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Parameters that this thread creates take no memory (device "meta"); buffers keep their values."""
    with loading():
        _watch_parameters()
        _EMPTY.wanted = True
        try:
            yield
        finally:
            _EMPTY.wanted = False
