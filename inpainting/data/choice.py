"""Which regions of a painting are masked in one example, and the record of it beside the results.

Legend: h w pixels of the image, r chosen regions, s side of the square crop. The choice follows from (seed,
name of the image, epoch) alone, never from workers, batch size or the order of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.files import read_json
from ldm.images import to_pm1

MANIFEST = "masks.json"


def within(masks: Tensor, threshold: float | None) -> int:
    """How many of (r, s, s) bool, from the first on, cover at most a fraction `threshold`; at least 1."""
    if threshold is None:
        return len(masks)
    covered = masks.cummax(dim=0).values.float().mean(dim=(1, 2)).double()
    return max(1, int((covered <= threshold).sum()))


def centre_crop(pixels: np.ndarray, side: int) -> Tensor:
    """The centre of an image whose shorter side is scaled to `side`; sizes are rounded as by torchvision.

    pixels: (h, w, 3) uint8 -> (3, s, s) in [-1, 1], antialiased linear filter; bool (h, w) -> bool (s, s),
    nearest pixel
    """
    h, w = pixels.shape[:2]
    h, w = (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
    top, left = round((h - side) / 2), round((w - side) / 2)
    if pixels.dtype == bool:
        scaled = F.interpolate(torch.from_numpy(pixels)[None, None].float(), size=(h, w), mode="nearest")
        return scaled[0, 0, top : top + side, left : left + side] > 0
    image_u8 = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
    return to_pm1(image_u8[top : top + side, left : left + side])


def layout_rows(masks: Tensor, max_concepts: int | None) -> Tensor:
    """(r, s, s) bool -> (max_concepts + 1, s, s) float: all ones; each region with the background; zeros."""
    background = ~masks.any(dim=0)
    rows = torch.cat([torch.ones_like(masks[:1]), masks | background]).float()
    missing = (len(masks) if max_concepts is None else max_concepts) + 1 - len(rows)
    return F.pad(rows, (0, 0, 0, 0, 0, missing))


@dataclass(frozen=True)
class MaskManifest:
    """Which regions were masked in each image of a run; written beside its results.

    items: image's name -> names of its masks, in the order of its prompts. left_out: name -> reason.
    """

    split: str
    seed: int
    rules: Mapping[str, Any]  # of `PaintingOptions`
    items: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> MaskManifest:
        """ValueError names the file."""
        document = read_json(path)
        try:
            items = {stem: tuple(names) for stem, names in document["items"].items()}
            return cls(document["split"], document["seed"], document["rules"], items, document["left_out"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of chosen masks: {error}") from None
