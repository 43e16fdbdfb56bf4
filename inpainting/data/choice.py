"""Which regions of a painting are masked in one example, and the record of it beside the results.

Legend: h w pixels of the image, r chosen regions, s side of the square crop. The choice follows from (seed,
name of the image, epoch) alone, never from workers, batch size or the order of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from inpainting.data.paintings import Painting, read_object, write_object
from ldm.images import to_pm1
from ldm.settings.config import check_settings, setting

MANIFEST = "masks.json"


@dataclass(frozen=True)
class ChoiceRules:
    """How the regions of an example are chosen (published options)."""

    max_concepts: int | None = setting(5, low=1, high=10, help="most regions; 1: any one; none: all")
    shuffle_concepts: bool = setting(False, help="shuffle them, else the largest is first")
    masked_area_threshold: float | None = setting(
        None, low=0, high=1, help="share of the crop that may be masked; the first region is always kept"
    )
    resolution: int = setting(512, low=8, help="side of the square crop in pixels")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The regions of one example, in order."""

    names: tuple[str, ...]
    masks: Tensor  # (r, s, s) bool


def choose(
    painting: Painting,
    names: Sequence[str],
    size: tuple[int, int],
    rules: ChoiceRules,
    rng: np.random.Generator,
) -> Chosen:
    """Choose among the regions `names` of an image of `size` (h, w).

    Largest first (on the whole image), at most max_concepts, shuffled, and then as many from the front as
    the threshold allows. Regions outside the crop are no candidates.
    """
    masks = {name: painting.read_mask(name, size) for name in names}
    crops = {name: crop_mask(mask, rules.resolution) for name, mask in masks.items()}
    by_area = sorted(masks, key=lambda name: -np.count_nonzero(masks[name]))
    order = [name for name in by_area if crops[name].any()]
    if not order:
        raise ValueError(f"{painting.image}: no region lies in the central {rules.resolution} pixel crop")
    if rules.max_concepts == 1:
        order = [order[int(rng.integers(len(order)))]]
    order = order[: rules.max_concepts]
    if rules.shuffle_concepts:
        order = [order[index] for index in rng.permutation(len(order))]
    kept = within(torch.stack([crops[name] for name in order]), rules.masked_area_threshold)
    return Chosen(tuple(order[:kept]), torch.stack([crops[name] for name in order[:kept]]))


def within(masks: Tensor, threshold: float | None) -> int:
    """How many of (r, s, s) bool, from the first on, cover at most a share `threshold`; at least 1."""
    if threshold is None:
        return len(masks)
    shares = [masks[: count + 1].any(dim=0).float().mean().item() for count in range(len(masks))]
    fit = [share <= threshold for share in shares]
    return next((count for count in range(1, len(fit)) if not fit[count]), len(fit))


def crop_image(rgb_u8: np.ndarray, side: int) -> Tensor:
    """(h, w, 3) uint8 -> (3, s, s) in [-1, 1]: shorter side to s, antialiased linear filter, centre."""
    h, w = resized(rgb_u8.shape[:2], side)
    scaled = np.asarray(Image.fromarray(rgb_u8).resize((w, h), Image.Resampling.BILINEAR))
    top, left = corner((h, w), side)
    return to_pm1(scaled[top : top + side, left : left + side])


def crop_mask(mask: np.ndarray, side: int) -> Tensor:
    """Bool (h, w) -> bool (s, s): the same crop, nearest pixel."""
    h, w = resized(mask.shape, side)
    values = torch.from_numpy(mask)[None, None].float()
    scaled = F.interpolate(values, size=(h, w), mode="nearest")[0, 0] > 0
    top, left = corner((h, w), side)
    return scaled[top : top + side, left : left + side]


def layout_rows(masks: Tensor, max_concepts: int | None) -> Tensor:
    """(r, s, s) bool -> (max_concepts + 1, s, s) float: all ones; each region with the background; zeros."""
    background = ~masks.any(dim=0)
    rows = torch.cat([torch.ones_like(masks[:1]), masks | background]).float()
    missing = (len(masks) if max_concepts is None else max_concepts) + 1 - len(rows)
    return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, missing))


def resized(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """(h, w) with the shorter side `side`; the longer one is cut off to whole pixels, as torchvision does."""
    h, w = size[0], size[1]
    return (side, int(side * w / h)) if h <= w else (int(side * h / w), side)


def corner(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(top, left) of the central square, rounded as torchvision does."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


@dataclass(frozen=True)
class Manifest:
    """Which regions were masked in each image of a run; written beside its results.

    items: image's name -> names of its masks, in the order of its prompts. left_out: name -> reason.
    """

    split: str
    seed: int
    rules: ChoiceRules
    items: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON."""
    write_object(path, asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    """Read what `write_manifest` wrote; ValueError names the file."""
    document: dict[str, Any] = read_object(path)
    try:
        items = {stem: tuple(names) for stem, names in document["items"].items()}
        rules = ChoiceRules(**document["rules"])
        return Manifest(document["split"], document["seed"], rules, items, document["left_out"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of chosen masks: {error}") from None


def check_same(path: Path, found: Manifest, wanted: Manifest) -> None:
    """Refuse a manifest that was written under other settings."""
    pairs = {"split": (found.split, wanted.split), "seed": (found.seed, wanted.seed)}
    pairs |= {name: (value, getattr(wanted.rules, name)) for name, value in asdict(found.rules).items()}
    for name, (there, here) in pairs.items():
        if there != here:
            raise ValueError(
                f"{path} was written with {name} {there}, the settings say {here}; "
                "use the same settings, or another output folder"
            )
