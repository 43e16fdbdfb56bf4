"""Filled images against their originals, as numbers and features.

A metric looks at the whole image, at one region in its dimmed surroundings, or at its bounding box.
Legend: h w pixels, k regions; images are RGB (h, w, 3) uint8, masks bool (h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from datasets.geometry import bbox_of_mask
from inpainting.models.text_to_image.config import BackboneFiles
from ldm.images import to_pm1
from ldm.metrics.backbones import Lpips, MetricNetworks, inception_features, load_inception
from ldm.metrics.clip import Clip, ResnetClip
from ldm.metrics.numbers import squared_error, ssim_over

BATCH = 32  # images that go through a network together; chosen
DIM, KERNEL, SIGMA = 0.1, 15, 20.0  # published: a tenth of the brightness, blurred
PADDED = "A padded image of {}"  # published text for a highlighted region


@dataclass
class Backbones(MetricNetworks):
    inception: nn.Module | None = None
    lpips: Lpips | None = None
    clip: Clip | None = None
    clip_iqa: Clip | ResnetClip | None = None

    @classmethod
    def load(cls, files: BackboneFiles, device: torch.device) -> "Backbones":
        def load_clip(path: Path) -> Clip | ResnetClip:
            return Clip.load(path, device) if path.is_dir() else ResnetClip.load(path, device)

        models = cls()
        models.inception = models.get("inception", files.inception, lambda it: load_inception(it).to(device))
        models.lpips = models.get("squeezenet", files.squeezenet, lambda it: Lpips.load(it).to(device))
        models.clip = models.get("clip", files.clip, lambda it: Clip.load(it, device))
        models.clip_iqa = models.get("clip_iqa", files.clip_iqa, load_clip)
        return models


@dataclass(frozen=True, eq=False)
class InpaintedImage:
    stem: str
    truth_u8: np.ndarray  # (h, w, 3)
    result_u8: np.ndarray  # (h, w, 3)
    masks: list[np.ndarray]  # k x (h, w) bool, none empty
    captions: list[str]  # k ground-truth descriptions
    description: str | None = None  # of the whole image

    def __post_init__(self) -> None:
        result, truth = self.result_u8.shape[:2], self.truth_u8.shape[:2]
        if result != truth:
            raise ValueError(f"{self.stem}: the result is {result}, the original {truth}")


@dataclass(eq=False)
class ImageMetrics:
    """The metrics of one image, less those that need a missing network."""

    stem: str
    regions: int
    pixels: int
    masked_pixels: int
    numbers: dict[str, list[float]] = field(default_factory=dict)  # one value, or one per region
    features: dict[str, np.ndarray] = field(default_factory=dict)  # (1 or k, d)


@torch.inference_mode()
def measure_images(
    images: Sequence[InpaintedImage], networks: Backbones, device: torch.device
) -> list[ImageMetrics]:
    """All numbers of images of one size; `masked_` ones look at the regions' boxes or pixels alone,
    `outside_` ones at the pixels of none."""
    metrics, real, fake = [], [], []
    for image in images:
        boxes, union = [bbox_of_mask(mask) for mask in image.masks], np.any(image.masks, axis=0)
        truth, result = image.truth_u8, image.result_u8
        real.append([truth[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
        fake.append([result[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
        numbers = {"squared_error": [squared_error(result, truth)]}
        numbers["masked_squared_error"] = [squared_error(result, truth, union)]
        if not union.all():
            numbers["outside_squared_error"] = [squared_error(result, truth, ~union)]
            numbers["outside_ssim"] = [ssim_over(result, truth, ~union)]
        metrics.append(ImageMetrics(image.stem, len(image.masks), union.size, int(union.sum()), numbers))
    truths, results = ([[image.truth_u8] for image in images], [[image.result_u8] for image in images])

    if (lpips := networks.lpips) is not None:
        planes = ([to_pm1(np.ascontiguousarray(one)) for (one,) in side] for side in (results, truths))
        pair = [torch.stack(side).to(device) for side in planes]
        for each, image, mean, where in zip(metrics, images, lpips(*pair), lpips.map(*pair), strict=True):
            inside = torch.from_numpy(np.any(image.masks, axis=0)).to(device)
            each.numbers |= {"lpips": [float(mean)], "masked_lpips": [float(where[inside].mean())]}
            if "outside_ssim" in each.numbers:
                each.numbers["outside_lpips"] = [float(where[~inside].mean())]
    if (inception := networks.inception) is not None:
        seen = {"real": truths, "fake": results, "masked_real": real, "masked_fake": fake}
        for name, groups in seen.items():
            parts = in_batches(lambda part: inception_features(inception, part, device), groups)
            for each, rows in zip(metrics, parts, strict=True):
                each.features[name] = rows
    if networks.clip_iqa is not None:
        for name, groups in (("clip_iqa", results), ("masked_clip_iqa", fake)):
            for each, rows in zip(metrics, in_batches(networks.clip_iqa.quality, groups), strict=True):
                each.numbers[name] = rows.tolist()
    if (clip := networks.clip) is not None:
        told = [[] if image.description is None else [image.description] for image in images]
        whole = [result * len(texts) for result, texts in zip(results, told, strict=True)]
        shown = in_batches(clip.images, [views(image.result_u8, image.masks) for image in images])
        crops, captions = in_batches(clip.images, fake), [image.captions for image in images]
        true_views = in_batches(clip.images, [views(image.truth_u8, image.masks) for image in images])
        padded = in_batches(clip.texts, [[PADDED.format(text) for text in texts] for texts in captions])
        for name, one, other in (
            ("clip_score_image2image", shown, true_views),
            ("clip_score_text2image", shown, padded),
            ("masked_clip_score_image2image", crops, in_batches(clip.images, real)),
            ("masked_clip_score_text2image", crops, in_batches(clip.texts, captions)),
            ("clip_score_text2image_global", in_batches(clip.images, whole), in_batches(clip.texts, told)),
        ):
            for each, a, b in zip(metrics, one, other, strict=True):
                each.numbers |= {name: (a * b).sum(1).tolist()} if len(a) else {}
    return metrics


def views(image_u8: np.ndarray, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each region as it is, everything else dark and blurred (published)."""
    dark = cv2.GaussianBlur(DIM * image_u8.astype(np.float32), (KERNEL, KERNEL), SIGMA)
    shown = [np.where(mask[..., None], image_u8, dark) for mask in masks]
    return [np.clip(view.round(), 0, 255).astype(np.uint8) for view in shown]


def in_batches(network: Callable[[list[Any]], Any], groups: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """The rows that a network gives for the members of each group; BATCH of all members at a time."""
    members = [member for group in groups for member in group]
    if not members:
        return [np.zeros((0, 1))] * len(groups)
    parts = [network(members[start : start + BATCH]) for start in range(0, len(members), BATCH)]
    return np.split(np.concatenate(parts), np.cumsum([len(group) for group in groups])[:-1])
