"""Which device and number type to use when the user leaves the choice to us."""

import torch

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """auto: CUDA, else Apple's MPS, else the CPU. A device that is named but absent is a ValueError."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    kind = name.split(":")[0]
    if kind not in present:
        raise ValueError(f"unknown device {name!r}; allowed: {', '.join(DEVICES)}")
    if not present[kind]:
        there = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(
            f"device {name} is not available to this PyTorch ({torch.__version__}); available: {there}"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: half precision on CUDA, single precision elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]
