"""Similarity of objects in the space of a self-supervised network. Legend: b images, d features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from ldm.checkpoints import load_pretrained
from ldm.files import read_json
from ldm.images import IMAGENET_MEAN, IMAGENET_STD

DINO_SIDE = 224  # pixels


class Dino:
    """DINO or DINOv2 from transformers: the class token of the last layer (published: DINO ViT-S/16)."""

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", side: int = DINO_SIDE) -> None:
        self.model, self.device, self.side = model.eval().to(device), torch.device(device), side

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Dino:
        """A `save_pretrained` folder."""
        read_json(folder / "config.json")
        return cls(load_pretrained(AutoModel, folder, may_lack="pooler.", local_files_only=True), device)

    @torch.inference_mode()
    def images(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1; the cosine of two rows is their similarity."""
        side, cuts = self.side, []
        for image_u8 in images_u8:  # shorter side scaled, middle cut out
            height, width = image_u8.shape[:2]
            scale = side / min(height, width)
            size = max(side, round(width * scale)), max(side, round(height * scale))
            small = np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.BICUBIC))
            top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
            cut_01 = small[top : top + side, left : left + side].astype(np.float32) / 255
            cuts.append((cut_01 - IMAGENET_MEAN) / IMAGENET_STD)
        pixels = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float().to(self.device)
        return F.normalize(self.model(pixels).last_hidden_state[:, 0].float(), dim=-1).cpu().numpy()
