"""Weight files of metric networks, as their publishers distribute them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.checkpoints import load_strict
from ldm.files import file_sha256, first_line, hash_folder


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, of a PyTorch file or of a TorchScript archive.

    Nothing but data is unpickled, and nothing of a script is run.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `python -m ldm.registry list` names what can be pulled")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_script(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path}: not a readable weight file ({first_line(error)})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a table of weights")
    return found


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def fill(network: nn.Module, weights: dict[str, Tensor], where: Path) -> nn.Module:
    """Load strictly and freeze. Counters of batch normalisation, which old files lack, are not needed."""
    own = network.state_dict()
    counters = {key: own[key] for key in own.keys() - weights.keys() if key.endswith("num_batches_tracked")}
    load_strict(network, weights | counters, where)
    return network.eval().requires_grad_(False)


def hash_of(path: Path) -> dict[str, str]:
    """SHA-256 of a weight file, or of every weight file of a model folder."""
    if path.is_file():
        return {path.name: file_sha256(path)}
    return hash_folder(path) or hash_folder(path, "*.bin")
