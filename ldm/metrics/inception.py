"""The Inception-v3 of FID, (b, 2048) features, without torchvision.

The network and its keys are those of the ported TensorFlow graph inception-2015-12-05, whose average pools
leave the padding out and whose last block pools by maximum.
Legend: b images, h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.metrics.weights import fill, read_weight_file

INCEPTION_SIDE = 299  # pixels
CLASSES = 1008
Kernel = int | tuple[int, int]
# One convolution of a branch: (name, output channels, kernel); two in a list see the same input.
Link = tuple[str, int, Kernel]
Branch = list[Link | list[Link]]


class Conv(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, before: int, after: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches whose outputs are joined; those in `halving` end with stride 2, others keep the size."""

    def __init__(self, before: int, branches: list[Branch], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.chains: list[list[list[str]]] = []
        for branch in branches:
            width, chain = before, []
            for position, link in enumerate(branch):
                forks = link if isinstance(link, list) else [link]
                ends = pool == "halve" and position == len(branch) - 1
                for name, after, kernel in forks:
                    both = (kernel, kernel) if isinstance(kernel, int) else kernel
                    padding = 0 if ends else (both[0] // 2, both[1] // 2)
                    self.add_module(name, Conv(width, after, kernel, 2 if ends else 1, padding))
                width = sum(after for _, after, _ in forks)
                chain.append([name for name, _, _ in forks])
            self.chains.append(chain)
        if pooled:
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


def block_a(before: int, pooled: int) -> Mixed:
    double: Branch = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    five: Branch = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return Mixed(before, [[("branch1x1", 64, 1)], five, double], "mean", pooled)


def block_b(before: int) -> Mixed:
    double: Branch = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return Mixed(before, [[("branch3x3", 384, 3)], double], "halve")


def block_c(before: int, width: int) -> Mixed:
    one, wide, tall = (1, 1), (1, 7), (7, 1)
    seven: Branch = [("branch7x7_1", width, 1), ("branch7x7_2", width, wide), ("branch7x7_3", 192, tall)]
    sizes = (one, tall, wide, tall, wide)
    double: Branch = [
        (f"branch7x7dbl_{k}", 192 if k == 5 else width, size) for k, size in enumerate(sizes, 1)
    ]
    return Mixed(before, [[("branch1x1", 192, 1)], seven, double], "mean", 192)


def block_d(before: int) -> Mixed:
    three: Branch = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)]
    sizes = ((1, 1), (1, 7), (7, 1), (3, 3))
    seven: Branch = [(f"branch7x7x3_{k}", 192, size) for k, size in enumerate(sizes, 1)]
    return Mixed(before, [three, seven], "halve")


def block_e(before: int, pool: str) -> Mixed:
    def fork(name: str) -> list[Link]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    three: Branch = [("branch3x3_1", 384, 1), fork("branch3x3_2")]
    double: Branch = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")]
    return Mixed(before, [[("branch1x1", 320, 1)], three, double], pool, 192)


class Inception(nn.Module):
    """Features of the last pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c = block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, "mean"), block_e(2048, "max")
        self.fc = nn.Linear(2048, CLASSES)  # not used; the published files hold it

    def forward(self, images_u8: Tensor) -> Tensor:
        """(b, 3, h, w) uint8 -> (b, 2048) float32."""
        x = (resize_like_tensorflow(images_u8.float(), INCEPTION_SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear, pixel i of the result lies at i * scale (TensorFlow 1).

    images: (b, c, h, w) -> (b, c, side, side)
    """
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(side, device=images.device, dtype=images.dtype) * (size / side)
        low = place.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (place - low).reshape([-1 if dim == axis else 1 for dim in range(4)])
        images = images.index_select(axis, low) * (1 - share) + images.index_select(axis, high) * share
    return images


def load_inception(path: Path) -> nn.Module:
    """The network with weights of a published file (pt_inception-2015-12-05-6726825d.pth or safetensors)."""
    return fill(Inception(), read_weight_file(path), path)
