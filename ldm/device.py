"""Which device and precision to use when the user leaves the choice to us, how a network came to be, and
attention of bfloat16 on a CPU, block by block: 1.5 to 2.7 times faster than torch's own kernel.
Legend: b batch, a heads, n queries, m keys, d width of a head.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ldm.files import read_json
from ldm.result import library_versions
from ldm.settings.choices import DEVICES, FLOAT_TYPES
from ldm.settings.config import to_plain

DTYPES = dict(zip(FLOAT_TYPES, (torch.float32, torch.float16, torch.bfloat16), strict=True))
# torch 2.13 multiplies in its fused attention at a quarter of the rate of its matrix product (no AMX).
BLOCK = 2**20  # logits at once: the fastest of 2^18 to 2^24 on an AMD EPYC (second-level cache 1 MB)


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
        "python": platform.python_version(), "versions": library_versions()}  # fmt: skip
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
    part: str,
    model: nn.Module,
    settings: Any,
    effort: Mapping[str, float],
    seconds: float,
    *,
    device: torch.device | str = "cpu",
    held_out: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that one needs to know to trust or to repeat a training. effort: its seed, steps, and samples."""
    return {
        "part": part, "trained_on": "rendered scenes",
        "parameters": sum(parameter.numel() for parameter in model.parameters()), **effort,
        "minutes": round(seconds / 60, 1), "code_revision": code_revision(),
        "hardware": describe_hardware(device), "held_out": held_out or {}, "settings": to_plain(settings),
    }  # fmt: skip


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale Q K^T) V for (b, a, n, d), (b, a, m, d), (b, a, m, d).

    scale: d^-1/2 unless given. Logits are rounded to the type of the inputs.
    """
    b, a, n, d = query.shape
    m, rows = key.shape[-2], min(n, max(BLOCK // key.shape[-2], 1))
    heads = max(BLOCK // (rows * m), 1)
    query, key, value = [part.reshape(b * a, -1, part.shape[-1]) for part in (query, key, value)]
    key = (key * (d**-0.5 if scale is None else scale)).transpose(1, 2)
    out = query.new_empty(b * a, n, value.shape[-1])
    for head in range(0, b * a, heads):
        part = slice(head, head + heads)
        for row in range(0, n, rows):
            weights = torch.bmm(query[part, row : row + rows], key[part]).softmax(-1)
            out[part, row : row + rows] = torch.bmm(weights, value[part])
    return out.view(b, a, n, -1)


class FasterAttention(TorchFunctionMode):
    """Within it this thread's `scaled_dot_product_attention` runs block by block where that is faster."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = dict(kwargs or {})
        if function is not scaled_dot_product_attention or not suits(*args, **more):
            return function(*args, **more)
        return blockwise_attention(args[0], args[1], args[2], more.get("scale"))


class RowsAsAlone(TorchFunctionMode):
    """Within it every one of `count` parts of a batch, rows i, i + count, ..., gets what it gets alone.

    On a CPU the number of rows decides how convolutions and linear layers add up; other layers of these
    networks do not look at it.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = dict(kwargs or {})
        if function not in (conv2d, linear) or len(args[0]) % self.count:
            return function(*args, **more)
        parts = [function(args[0][index :: self.count], *args[1:], **more) for index in range(self.count)]
        return torch.stack(parts, dim=1).flatten(0, 1)


def as_alone(count: int, device: torch.device) -> AbstractContextManager[Any]:
    """`RowsAsAlone` where that costs little: on a CPU, for more than one part."""
    return RowsAsAlone(count) if count > 1 and device.type == "cpu" else nullcontext()


def suits(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **options: Any,
) -> bool:  # fmt: skip
    """Whether `blockwise_attention` computes the same, and faster: bfloat16 on a CPU, no gradients."""
    plain = attn_mask is None and not dropout_p and not is_causal and not options.get("enable_gqa")
    place = query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.ndim == 4
    return plain and place and not torch.is_grad_enabled()
