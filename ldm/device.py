"""Which device and precision to use when the user leaves the choice to us, and how a network came to be."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.files import read_json
from ldm.result import library_versions
from ldm.settings.choices import DEVICES, FLOAT_TYPES
from ldm.settings.config import to_plain

DTYPES = dict(zip(FLOAT_TYPES, (torch.float32, torch.float16, torch.bfloat16), strict=True))


def pick_device(name: str = "auto") -> torch.device:
    """auto: CUDA, else Apple's MPS, else the CPU. A device that is named but absent is a ValueError."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, there in present.items() if there]
    if name == "auto":
        return torch.device(usable[0])
    kind = name.split(":")[0]
    if kind not in present:
        raise ValueError(f"unknown device {name!r}; allowed: {', '.join(DEVICES)}")
    if not present[kind]:
        wrong = f"device {name} is not available to this PyTorch ({torch.__version__})"
        raise ValueError(f"{wrong}; available: {', '.join(usable)}")
    return torch.device(name)


def pick_dtype(
    name: str, device: torch.device, folder: Path | str | None = None, undeclared: str = "bf16"
) -> torch.dtype:
    """auto: on CUDA the type that the config.json of a checkpoint's folder declares, else `undeclared`; fp16
    where the device lacks bf16. Single precision on other devices.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"unknown dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    file = Path(folder or "") / "config.json"
    config = read_json(file) if folder is not None and file.is_file() else {}
    declared = str(config.get("dtype") or config.get("torch_dtype"))  # its name before transformers 4.56
    known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    own = known.get(declared, DTYPES[undeclared])
    half = own is not torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return own if half else torch.float16


def check_finite(values: Tensor, network: str) -> Tensor:
    """The values as given; ValueError where one is NaN or infinite, as half precision overflows."""
    if not bool(values.isfinite().all()):
        wrong = f"the {network} gave NaN or infinite numbers: give --dtype bf16 or fp32 (from Python dtype=)"
        raise ValueError(f"{wrong}. Damaged weights give them in every precision")
    return values


def describe_hardware(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a measurement ran on. The load average belongs to it: on a busy machine every time is longer."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    named: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0, "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else -1.0,
        "python": platform.python_version(), "versions": library_versions(),
    }  # fmt: skip
    if torch.device(device).type == "cuda":
        named["gpu"] = torch.cuda.get_device_name(device)
    return named


def code_revision() -> str:
    """The whole hash, with a plus where tracked files differ from it; `unknown` outside a checkout."""
    git = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return "unknown"


def make_manifest(
    part: str, model: nn.Module, settings: Any, effort: Mapping[str, float], seconds: float, *,
    device: torch.device | str = "cpu", held_out: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All that one needs to know to trust or to repeat a training. effort: its seed, steps, and samples."""
    return {
        "part": part, "trained_on": "rendered scenes",
        "parameters": sum(parameter.numel() for parameter in model.parameters()), **effort,
        "minutes": round(seconds / 60, 1), "code_revision": code_revision(),
        "hardware": describe_hardware(device), "held_out": held_out or {}, "settings": to_plain(settings),
    }  # fmt: skip
