"""Identity tokens of the reference object: DINOv2 and a linear projector (compositor paper, section 3.2).

Legend: b batch, r reference side, t tokens (CLS first, then patches), c token width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Model

from ldm.checkpoints import load_part, load_strict, read_weights, save_part
from ldm.images import IMAGENET_MEAN, IMAGENET_STD


class IdentityEncoder(nn.Module):
    """Reference image on white -> tokens that the UNet and both control branches attend to.

    The DINOv2 folder must be made for the reference size itself (full size: 224 px, patch 14, 16 x 16
    position embeddings, interpolated once at conversion), so nothing is interpolated here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Dinov2Model, projector: nn.Linear) -> None:
        super().__init__()
        if projector.in_features != encoder.config.hidden_size:
            raise ValueError(
                f"projector takes {projector.in_features} features, "
                f"the encoder gives {encoder.config.hidden_size}"
            )
        self.encoder = encoder
        self.projector = projector
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @property
    def reference_size(self) -> int:
        """Side of the square reference image, pixels."""
        return self.encoder.config.image_size

    def forward(self, reference_01: Tensor) -> Tensor:
        """(b, 3, r, r) in [0, 1], object on white -> (b, t, c) tokens after the final norm, projected."""
        pixels = (reference_01 - self.mean.to(reference_01.dtype)) / self.std.to(reference_01.dtype)
        return self.projector(self.encoder(pixel_values=pixels).last_hidden_state)

    def null(self, count: int = 1) -> Tensor:
        """Tokens (count, t, c) of the all-zero image, the unconditional identity."""
        weight = self.projector.weight
        black = torch.zeros(
            1, 3, self.reference_size, self.reference_size, dtype=weight.dtype, device=weight.device
        )
        return self(black).expand(count, -1, -1)

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        save_part(self.encoder, folder / "image_encoder", dtype)
        (folder / "projector").mkdir(parents=True, exist_ok=True)
        weights = {key: value.detach().to("cpu", dtype) for key, value in self.projector.state_dict().items()}
        save_file(weights, folder / "projector" / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> IdentityEncoder:
        encoder = load_part(Dinov2Model, folder / "image_encoder", dtype)
        weights = read_weights(folder / "projector")
        if "weight" not in weights or weights["weight"].ndim != 2:
            raise ValueError(f"{folder / 'projector'}: needs the matrix 'weight' of a linear layer")
        width, features = weights["weight"].shape
        projector = nn.Linear(features, width)
        load_strict(projector, weights, folder / "projector")
        return cls(encoder, projector.to(dtype)).eval()
