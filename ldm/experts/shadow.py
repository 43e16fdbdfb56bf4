"""How much an object darkens what it stands on, by a small network: a UNet on squares of SIDE pixels.

Legend: n = SIDE; b batch. Depth is relative inverse depth, 1 = nearest.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional

from ldm.checkpoints import load_part
from ldm.images import to_pm1

SIDE = 128  # pixels of the square that the network sees
CELL = 4  # pixels of a cell: the network runs on cells, for speed
CONTRAST = 3.0  # of depth around the object's, which varies little in a square; chosen
CHANNELS = 6  # colours, depth, mask, how far the object is before its background
RARE = -3.0  # most of an image is not darkened: the bias of an untrained network


def network_input(
    image_u8: np.ndarray, depth_01: np.ndarray, mask_01: np.ndarray, own_01: np.ndarray
) -> Tensor:
    """(CHANNELS, n, n) of an image (n, n, 3) without the object, its depth, and the object in it.

    mask_01: (n, n) float32, where the object is, hidden parts included; own_01: (n, n), its depth there
    """
    middle = float((own_01 * mask_01).sum() / max(float(mask_01.sum()), 1e-6))
    planes = (depth_01 - middle) * CONTRAST, 2 * mask_01 - 1, (own_01 - depth_01) * mask_01 * CONTRAST
    return torch.cat(
        [to_pm1(image_u8), torch.from_numpy(np.clip(np.stack(planes), -2, 2).astype(np.float32))]
    )


def darkening(model: UNet2DModel, inputs: Tensor) -> Tensor:
    """(b, CHANNELS, n, n) -> (b, n, n), the fraction of its light that each pixel loses, in (0, 1)."""
    cells = model(functional.pixel_unshuffle(inputs, CELL), 0).sample
    return torch.sigmoid(functional.pixel_shuffle(cells, CELL)[:, 0].float() + RARE)


class ShadowNetwork:
    """The network of a folder behind one function."""

    def __init__(self, model: UNet2DModel) -> None:
        self.model = model.eval()

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "ShadowNetwork":
        return cls(load_part(UNet2DModel, folder).to(device))

    @torch.inference_mode()
    def darkening(self, *images: np.ndarray) -> np.ndarray:
        """The images of `network_input` -> (n, n) float32 in (0, 1)."""
        inputs = network_input(*images).to(self.model.device)
        return darkening(self.model, inputs[None])[0].cpu().numpy()
