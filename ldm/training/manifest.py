"""What a trained network is and how it came to be: the manifest.json beside its weights."""

import contextlib
import subprocess
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ldm.device import describe_hardware
from ldm.settings.config import to_plain


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
