"""One filled image against its original, as numbers and features; `report` makes tables of them.

A metric looks at the whole image, at one region in its dimmed surroundings, or at its bounding box.
Legend: h w pixels, k regions; images are RGB (h, w, 3) uint8, masks bool (h, w).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from datasets.geometry import bbox_of_mask
from inpainting.models.text_to_image.config import BackboneFiles
from ldm.images import to_pm1
from ldm.metrics.clip import Clip
from ldm.metrics.clip_resnet import ResnetClip, load_resnet_clip
from ldm.metrics.inception import inception_features, load_inception
from ldm.metrics.lpips import Lpips, load_lpips
from ldm.metrics.similarity import squared_error
from ldm.metrics.weights import MetricNetworks

DIM, KERNEL, SIGMA = 0.1, 15, 20.0  # published: a tenth of the brightness, blurred
PADDED = "A padded image of {}"  # published text for a highlighted region


@dataclass
class Backbones(MetricNetworks):
    """The metric models; missing ones are skipped by name."""

    inception: nn.Module | None = None
    lpips: Lpips | None = None
    clip: Clip | None = None
    clip_iqa: Clip | ResnetClip | None = None

    @classmethod
    def load(cls, files: BackboneFiles, device: torch.device) -> Backbones:
        """Every network whose file is there and intact."""

        def load_clip_iqa(path: Path) -> Clip | ResnetClip:
            return Clip.load(path, device) if path.is_dir() else load_resnet_clip(path, device)

        models = cls()
        models.inception = models.get(
            "inception", files.inception, lambda path: load_inception(path).to(device)
        )
        models.lpips = models.get("squeezenet", files.squeezenet, lambda path: load_lpips(path).to(device))
        models.clip = models.get("clip", files.clip, lambda path: Clip.load(path, device))
        models.clip_iqa = models.get("clip_iqa", files.clip_iqa, load_clip_iqa)
        return models


@dataclass(frozen=True, eq=False)
class InpaintedImage:
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


@dataclass(eq=False)
class ImageMetrics:
    """The metrics of one image. Values that need a missing network are not in `numbers`.

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
def measure_image(image: InpaintedImage, networks: Backbones, device: torch.device) -> ImageMetrics:
    """All numbers of one image; `masked_` ones look at the regions' boxes or pixels alone."""
    boxes = [bbox_of_mask(mask) for mask in image.masks]
    truth, result, union = image.truth_u8, image.result_u8, np.any(image.masks, axis=0)
    metrics = ImageMetrics(image.stem, len(image.masks), union.size, int(union.sum()))
    metrics.numbers["squared_error"] = [squared_error(result, truth)]
    metrics.numbers["masked_squared_error"] = [squared_error(result, truth, union)]
    real, fake = ([pixels_u8[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes] for pixels_u8 in (truth, result))
    if networks.lpips is not None:
        pair = [to_pm1(np.ascontiguousarray(pixels_u8))[None].to(device) for pixels_u8 in (result, truth)]
        metrics.numbers["lpips"] = networks.lpips(*pair).tolist()
        inside = torch.from_numpy(union).to(device)
        metrics.numbers["masked_lpips"] = [float(networks.lpips.map(*pair)[0][inside].mean())]
    if networks.inception is not None:
        seen = {"real": [truth], "fake": [result], "masked_real": real, "masked_fake": fake}
        for name, images_u8 in seen.items():
            metrics.features[name] = inception_features(networks.inception, images_u8, device)
    if networks.clip_iqa is not None:
        metrics.numbers["clip_iqa"] = networks.clip_iqa.quality([result]).tolist()
        metrics.numbers["masked_clip_iqa"] = networks.clip_iqa.quality(fake).tolist()
    if (clip := networks.clip) is not None:
        highlighted = []  # each region as it is, everything else dark and blurred (published)
        for pixels_u8 in (result, truth):
            dark = cv2.GaussianBlur(DIM * pixels_u8.astype(np.float32), (KERNEL, KERNEL), SIGMA)
            views = [np.where(mask[..., None], pixels_u8, dark) for mask in image.masks]
            views = [np.clip(view.round(), 0, 255).astype(np.uint8) for view in views]
            highlighted.append(clip.images(views))
        shown, shown_truth = highlighted
        crops = clip.images(fake)
        texts = clip.texts([PADDED.format(caption) for caption in image.captions])
        cosines = {
            "clip_score_image2image": shown @ shown_truth.T,
            "clip_score_text2image": shown @ texts.T,
            "masked_clip_score_image2image": crops @ clip.images(real).T,
            "masked_clip_score_text2image": crops @ clip.texts(image.captions).T,
        }
        metrics.numbers |= {name: np.diag(matrix).tolist() for name, matrix in cosines.items()}
        if image.description is not None:
            whole = clip.images([result]) @ clip.texts([image.description]).T
            metrics.numbers["clip_score_text2image_global"] = [float(whole[0, 0])]
    return metrics
