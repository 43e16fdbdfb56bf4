"""LPIPS with SqueezeNet 1.1 (Zhang et al. 2018), without torchvision. Legend: b images, h w pixels."""

from __future__ import annotations

from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.loading import loading
from ldm.metrics.weights import fill, read_weight_file

HEAD_WEIGHTS = "functional/image/lpips_models/squeeze.pth"  # lin0.model.1.weight ..., in torchmetrics
FEATURE_WIDTHS = (64, 128, 256, 384, 384, 512, 512)  # channels of the compared layers
COMPARED = (1, 4, 7, 9, 10, 11, 12)  # they end with these parts of SqueezeNet
MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


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
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
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
    def load(cls, path: Path) -> Lpips:
        """path: SqueezeNet 1.1 (squeezenet1_1-b8a52dc0.pth or safetensors); its classifier is ignored."""
        stored = read_weight_file(path)
        weights = {key: value for key, value in stored.items() if not key.startswith("classifier.")}
        for key, value in read_weight_file(Path(torchmetrics.__file__).parent / HEAD_WEIGHTS).items():
            weights[f"heads.{key.removeprefix('lin').split('.')[0]}.weight"] = value
        return fill(cls(), weights, path)
