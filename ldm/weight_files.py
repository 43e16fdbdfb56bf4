"""Foreign checkpoints, read without trusting them, and safetensors written one tensor at a time.

A pickle is only ever opened by torch's restricted unpickler. What training left beside the weights (classes
of Lightning, OmegaConf, numpy scalars) is replaced by an inert object; any other name is refused.
"""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ldm.files import first_line, written_whole

TensorShape = tuple[int, ...]
PICKLES = (".ckpt", ".pth", ".pt", ".bin")
# Libraries whose objects lie in training checkpoints. None of their code is imported or run.
TRAINING_STATE = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf."),
    *("numpy.", "collections.", "typing."),
)
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a checkpoint, read one by one.

    others: what else the file holds (optimizer state, counters), by name; it is not read.
    """

    path: Path
    shapes: Mapping[str, TensorShape]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    others: tuple[str, ...] = ()


def open_weights(path: Path) -> WeightFile:
    """A .safetensors file, a .ckpt / .pth / .pt / .bin file, or a folder that holds some of these.

    A dictionary wrapped in `state_dict` is unwrapped. ValueError names the file and what is wrong with it.
    """
    if path.is_dir():
        names = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        if not names:
            raise ValueError(f"{path}: no *.safetensors and no *.bin file in this folder")
        owner = {key: file for file in map(open_weights, names) for key in file.shapes}
        shapes = {key: file.shapes[key] for key, file in owner.items()}
        dtypes = {key: file.dtypes[key] for key, file in owner.items()}
        return WeightFile(path, shapes, dtypes, lambda key: owner[key].read(key))
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix in PICKLES:
        return _open_pickle(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: unknown kind of weight file; allowed: .safetensors, {', '.join(PICKLES)}")
    types = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    try:
        with safe_open(path, framework="pt") as handle:
            slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
            shapes = {key: tuple(value.get_shape()) for key, value in slices.items()}
            dtypes = {key: types.get(value.get_dtype(), torch.float32) for key, value in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None

    def read(key: str) -> Tensor:
        with safe_open(path, framework="pt") as fresh:  # a new mapping each time: its pages are given back
            return fresh.get_tensor(key)

    return WeightFile(path, shapes, dtypes, read)


class Inert:
    """Base of the classes under foreign names: takes any arguments and any state, and keeps nothing."""

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def ignore(self, *args: Any) -> None:
        """Nothing is kept."""

    __init__ = __setstate__ = __setitem__ = append = ignore


def _open_pickle(path: Path) -> WeightFile:
    """Read with weights_only; memory-mapped where the file's format allows it."""
    zipped = zipfile.is_zipfile(path)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    foreign = sorted(name for name in names if not name.startswith(TRAINING_STATE))
    if foreign:
        raise ValueError(
            f"{path}: refused: loading it would run code by the names {', '.join(foreign[:5])}; "
            "a checkpoint needs none of them. Get the file from another source, as .safetensors if possible"
        )
    inert: list[Any] = []
    for name in names:
        module, _, last = name.rpartition(".")
        inert.append(type(last, (Inert,), {"__module__": module, "__qualname__": last}))
    try:
        with torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # its message goes without the advice to run the code
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        raise ValueError(f"{path}: refused by torch's safe unpickler: {reason.splitlines()[0]}") from None
    except (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a readable checkpoint, perhaps an incomplete download ({first_line(error)})"
        ) from None
    others: list[str] = []
    for _ in range(2):  # published loaders unwrap twice
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            others += [str(key) for key in content if key != "state_dict"]
            content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors; its entries are {sorted(map(str, content))[:5]}")
    others += [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    dtypes = {key: value.dtype for key, value in tensors.items()}
    return WeightFile(path, shapes, dtypes, lambda key: tensors[key].detach(), tuple(others))


@dataclass(frozen=True)
class Entry:
    """One tensor to be written: its final shape and type, and how to get it (in any float type)."""

    shape: TensorShape
    dtype: torch.dtype
    make: Callable[[], Tensor]


def entry_of(value: Tensor) -> Entry:
    """A tensor that is in memory already, written as it is."""
    return Entry(tuple(value.shape), value.dtype, lambda: value)


def write_safetensors(path: Path, entries: Mapping[str, Entry], *, progress: bool = False) -> None:
    """Write tensors one after the other, so that one of them is in memory at a time; all or nothing."""
    order = sorted(entries, key=lambda key: (-entries[key].dtype.itemsize, key))  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in order:
        entry = entries[key]
        start, end = end, end + entry.dtype.itemsize * math.prod(entry.shape)
        header[key] = {
            "dtype": DTYPE_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as partial, partial.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in tqdm(order, desc=path.parent.name, leave=False, disable=not progress):
            value, entry = entries[key].make(), entries[key]
            if tuple(value.shape) != entry.shape:
                raise ValueError(f"{key}: has shape {tuple(value.shape)}, {entry.shape} was announced")
            out = value.detach().to("cpu", entry.dtype).contiguous()
            narrower = value.is_floating_point() and out.dtype.itemsize < value.dtype.itemsize
            if narrower and torch.isfinite(value).all() and not torch.isfinite(out).all():
                raise ValueError(
                    f"{key}: its values do not fit into {str(entry.dtype).removeprefix('torch.')}"
                )
            file.write(out.reshape(-1).view(torch.uint8).numpy().data)
