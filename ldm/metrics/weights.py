"""Networks that measure images: their weight files, as published, loaded where they are there."""

import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.checkpoints import Network, load_strict
from ldm.files import file_sha256, hash_folder
from ldm.registry.models import how_to_get, resolve_model_path
from ldm.weight_files import open_weights

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class MetricNetworks:
    """What was loaded from local files. used: name -> path and hashes; skipped: name -> why it was not."""

    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, path: Path, load: Callable[[Path], T]) -> T | None:
        """The network of a file or folder, or None, and the reason is noted."""
        path = resolve_model_path(path)
        try:
            network = load(path)
            self.used[name] = {"path": path.as_posix(), "sha256": hash_of(path)}
            return network
        except (ValueError, OSError) as error:
            self.skipped[name] = " ".join(str(error).split())
            log.warning("skipped: %s: %s", name, self.skipped[name])
            return None


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, a PyTorch file or a TorchScript archive; nothing of a script is run."""
    if not path.is_file():
        more = how_to_get(path) or "; `python -m ldm.registry list` names what can be pulled"
        raise ValueError(f"{path} does not exist{more}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):  # TorchScript
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
    file = open_weights(path)
    return {key: file.read(key) for key in file.shapes}


def fill(network: Network, weights: dict[str, Tensor], where: Path) -> Network:
    """Load strictly and freeze. Counters of batch normalisation, which old files lack, are not needed."""
    state = network.state_dict()
    lacking = state.keys() - weights.keys()
    counters = {key: state[key] for key in lacking if key.endswith("num_batches_tracked")}
    load_strict(network, weights | counters, where)
    return network.eval().requires_grad_(False)


def hash_of(path: Path) -> dict[str, str]:
    """SHA-256 of a weight file, or of every weight file of a model folder."""
    if path.is_file():
        return {path.name: file_sha256(path)}
    return hash_folder(path) or hash_folder(path, "*.bin")
