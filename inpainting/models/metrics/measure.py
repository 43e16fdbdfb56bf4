"""One filled image against its original, as numbers and features; `report` makes tables of them.

Legend: h w pixels, k regions; images are RGB (h, w, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inpainting.models.metrics.backbones import Backbones
from inpainting.models.metrics.views import PADDED, cut_out, highlight
from ldm.metrics.similarity import squared_error


@dataclass(frozen=True, eq=False)
class Case:
    """An image with k filled regions."""

    stem: str
    truth_u8: np.ndarray  # (h, w, 3)
    result_u8: np.ndarray  # (h, w, 3)
    masks: list[np.ndarray]  # k x (h, w) bool, none empty
    captions: list[str]  # k ground-truth descriptions
    description: str | None = None  # of the whole image

    def __post_init__(self) -> None:
        if self.truth_u8.shape != self.result_u8.shape:
            raise ValueError(
                f"{self.stem}: the result is {self.result_u8.shape[:2]}, "
                f"the original {self.truth_u8.shape[:2]}"
            )
        if len(self.masks) != len(self.captions) or not self.masks:
            raise ValueError(f"{self.stem}: {len(self.masks)} masks and {len(self.captions)} captions")

    @property
    def union(self) -> np.ndarray:
        """(h, w) bool"""
        return np.any(self.masks, axis=0)


@dataclass(eq=False)
class Row:
    """What was found on one image. Values that need a missing network stay out of `numbers`.

    numbers: name -> the values of this image, one, or one per region
    features: name -> (1 or k, d)
    """

    stem: str
    regions: int
    pixels: int
    masked_pixels: int
    numbers: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)


@torch.inference_mode()
def measure(case: Case, networks: Backbones, device: torch.device) -> Row:
    """All numbers of one image; `masked_` ones look at the regions' boxes or pixels alone."""
    union = case.union
    row = Row(case.stem, len(case.masks), union.size, int(union.sum()))
    row.numbers["squared_error"] = [squared_error(case.result_u8, case.truth_u8)]
    row.numbers["masked_squared_error"] = [squared_error(case.result_u8, case.truth_u8, union)]
    whole = [case.truth_u8], [case.result_u8]
    parts = [[cut_out(image, mask) for mask in case.masks] for image in (case.truth_u8, case.result_u8)]
    if networks.lpips is not None:
        both = to_pm1(case.result_u8, device), to_pm1(case.truth_u8, device)
        row.numbers["lpips"] = networks.lpips(*both).tolist()
        where = torch.from_numpy(union).to(device)
        row.numbers["masked_lpips"] = [float(networks.lpips.map(*both)[0][where].mean())]
    if networks.inception is not None:
        for name, (truth, result) in (("", whole), ("masked_", parts)):
            row.features[f"{name}real"] = inception(networks.inception, truth, device)
            row.features[f"{name}fake"] = inception(networks.inception, result, device)
    if networks.clip_iqa is not None:
        row.numbers["clip_iqa"] = networks.clip_iqa.quality(whole[1]).tolist()
        row.numbers["masked_clip_iqa"] = networks.clip_iqa.quality(parts[1]).tolist()
    if networks.clip is not None:
        row.numbers |= similarities(case, parts, networks)
    return row


def similarities(
    case: Case, parts: Sequence[list[np.ndarray]], networks: Backbones
) -> dict[str, list[float]]:
    """Cosines in CLIP's space: region against region, and region against its caption."""
    clip = networks.clip
    assert clip is not None
    shown, truth = (
        clip.images([highlight(image, mask) for mask in case.masks])
        for image in (case.result_u8, case.truth_u8)
    )
    texts = clip.texts([PADDED.format(caption) for caption in case.captions])
    cut, cut_truth = clip.images(parts[1]), clip.images(parts[0])
    found = {
        "clip_score_image2image": shown @ truth.T,
        "clip_score_text2image": shown @ texts.T,
        "masked_clip_score_image2image": cut @ cut_truth.T,
        "masked_clip_score_text2image": cut @ clip.texts(case.captions).T,
    }
    numbers = {name: np.diag(cosines).tolist() for name, cosines in found.items()}
    if case.description is not None:
        whole = clip.images([case.result_u8]) @ clip.texts([case.description]).T
        numbers["clip_score_text2image_global"] = [float(whole[0, 0])]
    return numbers


def inception(network: torch.nn.Module, images_u8: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Features (k, d) of images of any sizes."""
    batches = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] for image in images_u8]
    return torch.cat([network(batch.to(device)) for batch in batches]).float().cpu().numpy()


def to_pm1(image_u8: np.ndarray, device: torch.device) -> Tensor:
    """(h, w, 3) uint8 -> (1, 3, h, w) in [-1, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(image_u8)).permute(2, 0, 1)[None]
    return batch.to(device).float() / 127.5 - 1


def kept_regions(masks: Sequence[np.ndarray], captions: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """Without regions that show no pixel; they cannot be judged."""
    pairs = [(mask, caption) for mask, caption in zip(masks, captions, strict=True) if mask.any()]
    return [mask for mask, _ in pairs], [caption for _, caption in pairs]
