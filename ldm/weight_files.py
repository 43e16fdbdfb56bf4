"""Foreign checkpoints, read without trusting them, and safetensors written one tensor at a time.

A pickle is only ever opened by torch's restricted unpickler. Objects that training left beside the weights
are replaced by inert ones. Names of Python's own library that are more than data are refused.
"""

import json
import math
import pickle
import re
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._weights_only_unpickler import get_globals_in_pkl
from tqdm.auto import tqdm

from ldm.files import first_line, visible_files, written_whole

TensorShape = tuple[int, ...]
PICKLES = (".ckpt", ".pth", ".pt", ".bin")
WHOLE = re.compile(r"(?:model|diffusion_pytorch_model|pytorch_model)(?:\.\w+)?")  # one file, no shards
# What accelerate and the Trainer of transformers leave beside the weights, by the starts of the names.
BESIDE = ("optimizer", "scheduler", "random_states", "rng_state", "training_args", "scaler", "sampler")
# What checkpoints hold of Python's own library; getattr is how pickle names a class inside a class.
DATA = re.compile(
    r"(?:argparse|collections|copyreg|datetime|decimal|enum|fractions|functools|pathlib|random|re|types|typing"
    r"|uuid|_codecs|_operator)\..+|builtins\.(?:bool|bytearray|bytes|complex|dict|float|frozenset|getattr|int"
    r"|list|object|range|set|slice|str|tuple|type)"
)
# Buffers that older releases of the libraries stored and newer ones compute anew or have removed.
RETIRED = re.compile(
    r"(?:.+\.)?(?:embeddings\.position_ids|rotary_emb\.inv_freq|masked_bias|relative_position_index"
    r"|num_batches_tracked)"
)
MAPPED = 2**28  # bytes of a file that are read by one mapping; chosen: a large weight alone takes a tenth
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPE_NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a checkpoint, read one by one; others: names of what else is in the file."""

    path: Path
    shapes: Mapping[str, TensorShape]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    others: tuple[str, ...] = ()


def open_weights(path: Path) -> WeightFile:
    """A .safetensors, .ckpt, .pth, .pt or .bin file (`state_dict` unwrapped), or a folder; or ValueError."""
    if path.is_dir():
        owner: dict[str, WeightFile] = {}
        for file in map(open_weights, weight_files(path)):
            if twice := sorted(owner.keys() & file.shapes.keys()):
                names = f"{owner[twice[0]].path.name} and {file.path.name}"
                raise ValueError(f"{path}: {names} both hold {twice[0]}; keep one of them")
            owner |= dict.fromkeys(file.shapes, file)
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

    mapped: Any = None
    left = 0

    def read(key: str) -> Tensor:
        nonlocal mapped, left
        if mapped is None:  # reads the whole header
            mapped, left = safe_open(path, framework="pt"), MAPPED
        value: Tensor = mapped.get_tensor(key)
        left -= value.nbytes
        mapped = mapped if left > 0 else None  # its pages are given back
        return value

    return WeightFile(path, shapes, dtypes, read)


def weight_files(folder: Path) -> list[Path]:
    """A folder's weights: .safetensors, else .bin, else variants (model.fp16.safetensors); shards last."""
    files = [file for suffix in (".safetensors", ".bin") for file in visible_files(folder, f"*{suffix}")]
    files = [file for file in files if not file.name.startswith(BESIDE)]
    if not files:
        wrong = "no *.safetensors and no *.bin file in this folder; the weights are missing"
        raise ValueError(f"{folder}: {wrong}")
    files = [file for file in files if "." not in file.stem] or files
    files = [file for file in files if file.suffix == files[0].suffix]
    return [file for file in files if WHOLE.fullmatch(file.stem)][:1] or files


def is_live(key: str) -> bool:
    """Whether a key names a weight, not a retired buffer, which every reader passes over."""
    return not RETIRED.fullmatch(key)


class _Kind(type):
    """torch sets items of what equals `dict`; stand-ins of its subclasses are to pass."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class Inert(metaclass=_Kind):
    """Base of the classes under foreign names: takes any arguments, items and state, and keeps nothing."""

    def __new__(cls, *args: Any) -> Any:
        if cls.__name__ == "getattr":
            return Inert
        return [] if cls.__name__ == "deque" else object.__new__(cls)

    __init__ = __setstate__ = __setitem__ = lambda self, *args: None


def _open_pickle(path: Path) -> WeightFile:
    """Read with weights_only; memory-mapped where the file's format allows it."""
    content: Any = None
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        else:
            with path.open("rb") as file:  # magic number, version, machine, content
                names = set().union(*(get_globals_in_pkl(file) for _ in range(4)))
        parts = [name.rpartition(".")[::2] for name in names]
        # Pickles of torch name Python's own modules as in Python 2.
        today = sorted(f"{IMPORT_MAPPING.get(module, module)}.{last}" for module, last in parts)
        own = [name for name in today if name.partition(".")[0] in sys.stdlib_module_names]
        foreign = [name for name in own if not DATA.fullmatch(name)]
        inert = [type(last, (Inert,), {"__module__": module, "__qualname__": last}) for module, last in parts]
        with torch.serialization.safe_globals([Inert, *inert]):
            if not foreign:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # its message goes without the advice to run the code
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()[0]
        wrong = f"refused by torch's safe unpickler: {reason}; where it was made, save it as .safetensors"
        raise ValueError(f"{path}: {wrong}") from None
    except Exception as error:  # whatever a damaged pickle ends in
        wrong = f"not a readable checkpoint, perhaps an incomplete download ({first_line(error)})"
        raise ValueError(f"{path}: {wrong}") from None
    if foreign:
        raise ValueError(
            f"{path}: refused: loading it would run code by the names {', '.join(foreign[:5])}; "
            "a checkpoint needs none of them. Get the file from another source, as .safetensors if possible"
        )
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
                kind = str(entry.dtype).removeprefix("torch.")
                raise ValueError(f"{key}: its values do not fit into {kind}")
            file.write(out.reshape(-1).view(torch.uint8).numpy().data)
