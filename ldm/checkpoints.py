"""Strict loading of `save_pretrained` folders: every key used, every parameter filled, or a clear error.

One thread at a time builds and loads networks, for which libraries replace functions of the process, change
its default dtype and draw from its random generator; the others notice nothing of it.
"""

import functools
import inspect
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from ldm.files import KEPT_HASHES, full_disk_named, named_failure, read_json, set_aside
from ldm.locks import held, one_writer
from ldm.weight_files import is_live, open_weights, weight_files

_LOCK = threading.RLock()
_HERE = threading.local()  # whether this thread is loading, and whether its parameters are empty
CPU = torch.device("cpu")
RUNNING: list[str] = []  # precisions of the trainings of this process
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor}
FACTORIES |= {torch.rand, torch.randn, torch.arange, torch.linspace}
DRAWN = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_}
DRAWN |= {nn.init.kaiming_uniform_, nn.init.xavier_uniform_}


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
        first: Any = args[0] if args else (kwargs or {}).get("tensor")
        if function in DRAWN and first.is_meta:  # an empty one has no numbers to draw
            return first
        made = function(*args, **(kwargs or {}))
        if self.dtype == self.usual or function not in FACTORIES or (kwargs or {}).get("dtype"):
            return made
        like = made.dtype != self.usual or any(hasattr(value, "dtype") for value in args[:1])
        return made if like else made.to(self.dtype)


@contextmanager
def loading() -> Iterator[None]:
    """One thread at a time builds or loads networks; also a decorator."""
    if getattr(_HERE, "loading", False):  # within another; a second mode would only take time
        yield
        return
    with _LOCK, _ThreadDtype() as mode:
        torch.set_default_dtype, torch.get_default_dtype = mode.set, mode.get
        _HERE.loading = True
        try:
            yield
        finally:
            _HERE.loading = False
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
        if not getattr(_HERE, "empty", False):
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]  # torch says None only


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Parameters that this thread creates take no memory (device "meta"); buffers keep their values."""
    with loading():
        _watch_parameters()
        _HERE.empty = True
        try:
            yield
        finally:
            _HERE.empty = False


Network = TypeVar("Network", bound=nn.Module)


def read_weights(place: Path) -> dict[str, Tensor]:
    """All tensors of a weight file, or of a folder's weight files (see `weight_files`), on the CPU."""
    files = weight_files(place) if place.is_dir() else [place]
    if len(files) > 1 or files[0].suffix != ".safetensors":
        source = open_weights(place)
        return {key: source.read(key) for key in source.shapes}
    try:
        return load_file(files[0])  # faster than one by one
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{files[0]}: not a readable safetensors file ({error})") from None


def check_weights(needed: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: Path | str) -> None:
    """ValueError that names what is missing, unexpected or of another shape; retired buffers may be there."""
    missing = sorted(needed.keys() - weights.keys())
    unexpected = sorted(filter(is_live, weights.keys() - needed.keys()))
    if missing or unexpected:
        others = f"{len(unexpected)} unexpected {unexpected[:3]}"
        raise ValueError(f"{where}: {len(missing)} weights missing {missing[:3]}, {others}")
    for key, value in needed.items():
        have, need = tuple(weights[key].shape), tuple(value.shape)
        if have != need:
            raise ValueError(f"{where}: weight {key} has shape {have}, the model needs {need}")


def load_strict(
    model: nn.Module, weights: Mapping[str, Tensor], where: Path | str, *, assign: bool = False
) -> None:
    needed = model.state_dict()
    check_weights(needed, weights, where)
    model.load_state_dict({key: weights[key] for key in needed}, strict=True, assign=assign)


@loading()
def load_part(kind: type[Network], folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    """One stock diffusers or transformers model from its folder, strictly, in `dtype`, in eval mode."""
    config = read_json(folder / "config.json")
    named = config.get("_class_name", (config.get("architectures") or [kind.__name__])[0])
    if named != kind.__name__:
        raise ValueError(f"{folder}/config.json: describes a {named}, expected a {kind.__name__}")
    with empty_parameters():  # no time for random weights, and memory for one copy
        model = build_model(kind, config, folder)
    stored = read_weights(folder)
    if stored.keys() != model.state_dict().keys():  # the hub's names become those that the model has
        for name, keys in stored_names(model).items():
            if name in stored and keys != [name]:
                stored |= zip(keys, stored.pop(name).chunk(len(keys)), strict=True)
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in stored.items()}
    load_strict(model, weights, folder, assign=True)
    return model.eval()


@loading()
def load_pretrained(
    kind: Any, source: Path | str, *, exact: bool = False, may_lack: str = " ", **options: Any
) -> Any:
    """`kind.from_pretrained`, in eval mode; weights that are missing or of another shape are a ValueError.

    exact: weights that fit nothing are refused too. may_lack: part of the names of what need not be there
    A network is in single precision unless `dtype` asks for another, whatever its file is in.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if "torch_dtype" not in options:  # the word of diffusers
        options.setdefault("dtype", torch.float32)
    what = f"{source} cannot be loaded"
    with named_failure(what, OSError, ValueError, RuntimeError, KeyError, SafetensorError):
        model, report = kind.from_pretrained(str(source), **options)
    wrong = {
        "missing": sorted(key for key in report["missing_keys"] if may_lack not in key),
        "mismatched": sorted(str(item[0]) for item in report["mismatched_keys"]),
        "unexpected": sorted(filter(is_live, report["unexpected_keys"])) if exact else [],
    }
    if listed := [f"{len(keys)} {name} keys {keys[:3]}" for name, keys in wrong.items() if keys]:
        raise ValueError(f"{source}: its weights do not fit its config.json: {'; '.join(listed)}")
    return model.eval()


def build_model(kind: type[Network], config: Mapping[str, Any], where: Path | str) -> Network:
    """An uninitialised model of class `kind` from its config, for diffusers and transformers alike."""
    try:
        if issubclass(kind, ConfigMixin):
            known = set(inspect.signature(kind.__init__).parameters)
            return kind(**{key: value for key, value in config.items() if key in known})
        return kind(kind.config_class(**config))  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where}: its config.json does not describe a {kind.__name__} ({error})") from None


def save_model_config(model: nn.Module, folder: Path) -> Path:
    """config.json of one stock diffusers or transformers model; returns the file of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, ConfigMixin):
        model.save_config(folder)
        return folder / "diffusion_pytorch_model.safetensors"
    assert isinstance(model, PreTrainedModel)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder / "model.safetensors"


def save_part(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """One stock diffusers or transformers model as config.json + safetensors, floats stored as `dtype`."""
    file = save_model_config(model, folder)
    weights, state = {}, model.state_dict()
    for name, keys in stored_names(model).items():
        value = torch.cat([state[key].detach() for key in keys]) if keys[1:] else state[keys[0]].detach()
        weights[name] = value.to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
    save_file(weights, file, metadata={"format": "pt"})


def stored_names(model: nn.Module) -> dict[str, list[str]]:
    """Names in the hub's files -> what they hold of `model`; several lie behind each other along axis 0."""
    keys = list(model.state_dict())
    if not isinstance(model, PreTrainedModel):
        return {key: [key] for key in keys}
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    places = revert_weight_conversion(model, {key: torch.tensor([i]) for i, key in enumerate(keys)})
    return {name: [keys[i] for i in held.tolist()] for name, held in places.items()}


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`; on success it takes its place, on failure nothing changes.

    A former folder that holds what the new one does not is kept as NAME.old1, NAME.old2, ...
    ValueError while another process writes the same folder.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    with one_writer(folder, inside=False):
        if old.exists() and not folder.exists():  # a kill came between the two renames below
            old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in folder.parent.glob(".*.partial"):  # of others, such as other checkpoints
            with held(leftover.with_suffix(".lock")) as free:
                if free:
                    shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            with full_disk_named(folder):
                yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        former, new = ({path.relative_to(one) for path in one.rglob("*")} for one in (folder, partial))
        if any(path.name != KEPT_HASHES for path in former - new):
            set_aside([folder])
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
