"""Networks that measure images: their weight files, loaded where they are there; without torchvision the
Inception-v3 of FID and the SqueezeNet of LPIPS (Zhang et al. 2018).

Inception and its keys are those of the ported TensorFlow graph inception-2015-12-05, whose average pools
leave the padding out and whose last block pools by maximum. Legend: b images, h w pixels.
"""

import logging
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoints import Network, load_strict, loading, read_weights
from ldm.files import check_stopped, file_sha256, hash_folder
from ldm.registry.models import how_to_get, resolve_model_path

T = TypeVar("T")
INCEPTION_SIDE = 299  # pixels
BATCH = 32  # images that go through the network together; chosen
CLASSES = 1008
Kernel = int | tuple[int, int]
# Branches of the published blocks: convolutions one after the other as "name channels kernel"; those joined
# by & see the same input, W stands for the width of a block.
BLOCK_35 = ("1x1 64 1", "5x5_1 48 1, 5x5_2 64 5", "3x3dbl_1 64 1, 3x3dbl_2 96 3, 3x3dbl_3 96 3")
SHRINK_35 = ("3x3 384 3", BLOCK_35[2])
LONG = (
    "1x1 192 1",
    "7x7_1 W 1, 7x7_2 W 1x7, 7x7_3 192 7x1",
    "7x7dbl_1 W 1, 7x7dbl_2 W 7x1, 7x7dbl_3 W 1x7, 7x7dbl_4 W 7x1, 7x7dbl_5 192 1x7",
)
SHRINK_17 = ("3x3_1 192 1, 3x3_2 320 3", "7x7x3_1 192 1, 7x7x3_2 192 1x7, 7x7x3_3 192 7x1, 7x7x3_4 192 3")
FORKED = (
    "1x1 320 1",
    "3x3_1 384 1, 3x3_2a 384 1x3 & 3x3_2b 384 3x1",
    "3x3dbl_1 448 1, 3x3dbl_2 384 3, 3x3dbl_3a 384 1x3 & 3x3dbl_3b 384 3x1",
)
HEAD_WEIGHTS = "functional/image/lpips_models/squeeze.pth"  # lin0.model.1.weight ..., in torchmetrics
FEATURE_WIDTHS = (64, 128, 256, 384, 384, 512, 512)  # channels of the compared layers
COMPARED = (1, 4, 7, 9, 10, 11, 12)  # they end with these parts of SqueezeNet
MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


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
            check_stopped()
            self.skipped[name] = " ".join(str(error).split())
            logging.getLogger(__name__).warning("skipped: %s: %s", name, self.skipped[name])
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
    return read_weights(path)


def fill(network: Network, weights: dict[str, Tensor], where: Path) -> Network:
    """Load strictly and freeze. Counters of batch normalisation, which old files lack, are not needed."""
    state = network.state_dict()
    lacking = state.keys() - weights.keys()
    counters = {key: state[key] for key in lacking if key.endswith("num_batches_tracked")}
    load_strict(network, weights | counters, where)
    return network.eval().requires_grad_(False)


def hash_of(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.name: file_sha256(path)}
    return hash_folder(path) or hash_folder(path, "*.bin")


class Conv(nn.Module):
    def __init__(self, before: int, after: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches whose outputs are joined. pool: mean or max, before a branch with `pooled` channels, or halve:
    maxima of half the size stand beside the branches, which end with stride 2.
    """

    def __init__(
        self, before: int, branches: tuple[str, ...], pool: str = "mean", pooled: int = 192, width: int = 0
    ) -> None:
        super().__init__()
        self.pool = pool
        self.chains: list[list[list[str]]] = []
        for branch in branches:
            channels, chain = before, []
            links = [link.split(" & ") for link in branch.replace("W", str(width)).split(", ")]
            for forks in links:
                ends, after, names = pool == "halve" and forks is links[-1], 0, []
                for name, count, kernel in (fork.split() for fork in forks):
                    high, wide = (int(side) for side in (kernel.split("x") * 2)[:2])
                    padding = 0 if ends else (high // 2, wide // 2)
                    convolution = Conv(channels, int(count), (high, wide), 2 if ends else 1, padding)
                    self.add_module(f"branch{name}", convolution)
                    names.append(f"branch{name}")
                    after += int(count)
                channels = after
                chain.append(names)
            self.chains.append(chain)
        if pool != "halve":
            self.branch_pool = Conv(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            y = x
            for names in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            found.append(y)
        if self.pool == "halve":
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], 1)
        if self.pool == "max":
            return torch.cat([*found, self.branch_pool(F.max_pool2d(x, 3, 1, 1))], 1)
        return torch.cat([*found, self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        for name, before, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", Mixed(before, BLOCK_35, pooled=pooled))
        self.Mixed_6a = Mixed(288, SHRINK_35, "halve")
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", Mixed(768, LONG, width=width))
        self.Mixed_7a = Mixed(768, SHRINK_17, "halve")
        self.Mixed_7b, self.Mixed_7c = Mixed(1280, FORKED), Mixed(2048, FORKED, "max")
        self.fc = nn.Linear(2048, CLASSES)  # not used; the published files hold it

    def forward(self, images_u8: Tensor) -> Tensor:
        """(b, 3, h, w) uint8 -> (b, 2048) float32."""
        x = (resize_like_tensorflow(images_u8.float(), INCEPTION_SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed_") else x
        return x.mean((2, 3))


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """(b, c, h, w) -> (b, c, side, side), bilinear; pixel i lies at i * scale (TensorFlow 1)."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(side, device=images.device, dtype=images.dtype) * (size / side)
        low = place.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        fraction = (place - low).reshape([-1 if dim == axis else 1 for dim in range(4)])
        images = images.index_select(axis, low) * (1 - fraction) + images.index_select(axis, high) * fraction
    return images


def inception_features(
    network: nn.Module, images_u8: Iterable[np.ndarray], device: torch.device
) -> np.ndarray:
    """(n, 2048) float32 of n images (h, w, 3) uint8 of any size, BATCH of them at a time."""
    rows = []
    tensors = (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] for image in images_u8)
    resized = (resize_like_tensorflow(one.to(device).float(), INCEPTION_SIDE) for one in tensors)
    with torch.inference_mode():
        while batch := list(islice(resized, BATCH)):  # the network's own resizing changes nothing of them
            rows.append(network(torch.cat(batch)).float().cpu().numpy())
    return np.concatenate(rows)


@loading()
def load_inception(path: Path) -> Inception:
    """The network with weights of a published file (pt_inception-2015-12-05-6726825d.pth or safetensors)."""
    return fill(Inception(), read_weight_file(path), path)


class Fire(nn.Module):
    """SqueezeNet's block: narrow, then 1x1 and 3x3 side by side."""

    def __init__(self, before: int, narrow: int, after: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, after, 1)
        self.expand3x3 = nn.Conv2d(narrow, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class Lpips(nn.Module):
    """Perceptual distance: weighted squared differences of normalised features."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(  # the convolutional part of SqueezeNet 1.1
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool,
            Fire(64, 16, 64), Fire(128, 16, 64), pool,
            Fire(128, 32, 128), Fire(256, 32, 128), pool,
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256))  # fmt: skip
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in FEATURE_WIDTHS)

    def layers(self, images_pm1: Tensor) -> list[Tensor]:
        """The compared layers, each of length 1 in every pixel."""
        mean, scale = (images_pm1.new_tensor(value)[:, None, None] for value in (MEAN, SCALE))
        x, found = (images_pm1 - mean) / scale, []
        for index, part in enumerate(self.features):
            x = part(x)
            if index in COMPARED:
                found.append(x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True)))
        return found

    def parts(self, one_pm1: Tensor, other_pm1: Tensor) -> list[Tensor]:
        """The weighted differences of every compared layer, (b, 1, n, m) of its own size."""
        pairs = zip(self.heads, self.layers(one_pm1), self.layers(other_pm1), strict=True)
        return [head((one - other).square()) for head, one, other in pairs]

    def forward(self, one_pm1: Tensor, other_pm1: Tensor) -> Tensor:
        """(b, 3, h, w) twice -> (b,) distances, 0 = equal."""
        return torch.stack([part.mean((1, 2, 3)) for part in self.parts(one_pm1, other_pm1)]).sum(0)

    def map(self, one_pm1: Tensor, other_pm1: Tensor) -> Tensor:
        """(b, 3, h, w) twice -> (b, h, w): where they differ, every layer enlarged to the images' size."""
        size = tuple(one_pm1.shape[2:])
        parts = [F.interpolate(part, size, mode="bilinear") for part in self.parts(one_pm1, other_pm1)]
        return torch.stack(parts).sum(0)[:, 0]

    @classmethod
    @loading()
    def load(cls, path: Path) -> "Lpips":
        """path: SqueezeNet 1.1 (squeezenet1_1-b8a52dc0.pth or safetensors); its classifier is ignored."""
        import torchmetrics

        stored = read_weight_file(path)
        weights = {key: value for key, value in stored.items() if not key.startswith("classifier.")}
        for key, value in read_weight_file(Path(torchmetrics.__file__).parent / HEAD_WEIGHTS).items():
            weights[f"heads.{key.removeprefix('lin').split('.')[0]}.weight"] = value
        return fill(cls(), weights, path)
