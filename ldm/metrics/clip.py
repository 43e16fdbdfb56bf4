"""Images as features in CLIP's space, with texts and quality by two opposite texts, and in DINO's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel, CLIPTokenizer

from ldm.checkpoints import load_pretrained
from ldm.files import read_json
from ldm.images import IMAGENET_MEAN, IMAGENET_STD
from ldm.registry.models import existing_folder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOOD, BAD = "Good photo.", "Bad photo."
SHARPNESS = 100.0  # CLIP's logit scale after training
DINO_SIDE = 224  # pixels


class Clip:
    """A CLIP model that sees whole images, squeezed to its square (published for CLIPSim)."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, device: torch.device | str) -> None:
        self.model, self.tokenizer, self.device = model.eval().to(device), tokenizer, torch.device(device)
        self.side = int(model.config.vision_config.image_size)
        self.window = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Clip:
        """A `save_pretrained` folder with its tokenizer; of a .bin file nothing but data is unpickled."""
        read_json(existing_folder(folder) / "config.json")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(load_pretrained(CLIPModel, folder, local_files_only=True), tokenizer, device)

    @torch.inference_mode()
    def images(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1."""
        size = self.side, self.side
        small = [Image.fromarray(image_u8).resize(size, Image.Resampling.BICUBIC) for image_u8 in images_u8]
        values = (np.stack([np.asarray(image, np.float32) for image in small]) / 255 - MEAN) / STD
        pixels = torch.from_numpy(values).permute(0, 3, 1, 2).float().to(self.device)
        return unit(self.model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(t, d), of length 1; texts that are too long are cut."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.window}
        tokens = self.tokenizer(list(texts), return_tensors="pt", **options).to(self.device)
        return unit(self.model.get_text_features(**tokens))

    def quality(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """(b,) in [0, 1]: probability of GOOD against BAD (CLIP-IQA, Wang et al. 2023)."""
        return quality(self.images(images_u8), self.texts((GOOD, BAD)))


class Dino:
    """DINO or DINOv2 from transformers: the class token of the last layer (published: DINO ViT-S/16)."""

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", side: int = DINO_SIDE) -> None:
        self.model, self.device, self.side = model.eval().to(device), torch.device(device), side

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Dino:
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
        return unit(self.model(pixels).last_hidden_state[:, 0])


def unit(features: object) -> np.ndarray:
    """Rows of length 1, from a tensor or from what transformers wraps it in."""
    found = features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]
    return F.normalize(found.float(), dim=-1).cpu().numpy()


def quality(images: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """images (b, d), anchors (2, d) good and bad, all of length 1 -> (b,) in [0, 1]."""
    good, bad = (SHARPNESS * images.astype(np.float64) @ anchors.T).T
    return 1 / (1 + np.exp(bad - good))
