"""Batches for the diffusion stages of the small inpainter; a batch is a function of (seed, step).

Legend: b batch, r regions, h w pixels, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from inpainting.models.text_to_image.layout import LAYOUTS, shrink_masks
from tiny.compositor.autoencoder import pm1_batch
from tiny.regions import Box, Region, Views, box_masks, grown, spread_out
from tiny.words import caption_of

CHUNK = 4  # images encoded together
PLAIN_SHARE = 0.6  # of single-mask examples whose solid has one colour; in the scenes it is 0.3


@dataclass(frozen=True, eq=False)
class Example:
    """One image with its masks and their prompts; `scene` is its number among the views."""

    scene: int
    image_u8: np.ndarray  # (h, w, 3)
    boxes: tuple[Box, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class UnetInputs:
    """What the UNet reads beside the noisy latents, and the latents that it learns."""

    latents: Tensor  # (b, c, h/4, w/4) of the whole image
    mask: Tensor  # (b, 1, h/4, w/4) union of the masks, 1 = paint
    masked: Tensor  # (b, c, h/4, w/4) of the image with grey masks


def single(views: Views, plain: Sequence[tuple[int, int]], rng: np.random.Generator) -> Example:
    """An image with one mask; `plain`: (scene, region) of all solids of one colour, drawn more often."""
    if rng.random() < PLAIN_SHARE and len(plain):
        scene, index = plain[int(rng.integers(len(plain)))]
    else:
        scene = int(rng.integers(len(views)))
        index = int(rng.integers(len(views.regions[scene])))
    region = views.regions[scene][index]
    return make_example(views, scene, [region], rng)


def several(views: Views, most: int, rng: np.random.Generator) -> Example:
    """An image with 1 to `most` masks in random order; scenes with many solids are drawn more often."""
    scenes = rng.integers(len(views), size=3)
    scene = int(max(scenes, key=lambda one: len(views.regions[one])))
    regions = views.regions[scene]
    chosen = spread_out(regions, rng.permutation(len(regions)).tolist(), most)
    count = int(rng.integers(1, len(chosen) + 1))
    return make_example(views, scene, chosen[:count], rng)


def make_example(views: Views, scene: int, regions: Sequence[Region], rng: np.random.Generator) -> Example:
    """Masks are the regions' boxes with a random margin on each side."""
    image_u8 = views.images_u8[scene]
    size = (image_u8.shape[0], image_u8.shape[1])
    boxes = tuple(grown(region.box_xyxy, rng.integers(0, 5, size=4).tolist(), size) for region in regions)
    return Example(scene, image_u8, boxes, tuple(caption_of(region.name) for region in regions))


def plain_regions(views: Views) -> list[tuple[int, int]]:
    """(scene, region) of every solid of one colour."""
    return [
        (scene, index)
        for scene, regions in enumerate(views.regions)
        for index, region in enumerate(regions)
        if not region.name.pattern
    ]


class Encoder:
    """Images -> latents in bfloat16, a few at a time as a CPU's cache likes; whole images only once."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        self.vae = vae
        self.known: dict[int, Tensor] = {}

    @torch.no_grad()
    def encode(self, images_pm1: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] -> scaled latents (b, c, h/4, w/4), float16."""
        rows = images_pm1.contiguous(memory_format=torch.channels_last).split(CHUNK)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = torch.cat([self.vae.encode(row).latents for row in rows])
        return (encoded.float() * self.vae.config.scaling_factor).half().contiguous()

    def whole(self, examples: Sequence[Example], images_pm1: Tensor) -> Tensor:
        """Latents of the unmasked images."""
        new = [row for row, one in enumerate(examples) if one.scene not in self.known]
        if new:
            for row, latents in zip(new, self.encode(images_pm1[new]), strict=True):
                self.known[examples[row].scene] = latents.clone()
        return torch.stack([self.known[one.scene].float() for one in examples])

    def conditions(self, examples: Sequence[Example], rng: np.random.Generator) -> UnetInputs:
        """Each batch samples its masks down by one of the two known rules."""
        image = pm1_batch(np.stack([one.image_u8 for one in examples]))
        size = (image.shape[2], image.shape[3])
        union = np.stack([box_masks(one.boxes, size).any(0) for one in examples])
        hole = torch.from_numpy(union)[:, None]
        masked = self.encode(image * ~hole).float()
        rule = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
        mask = shrink_masks(hole, (masked.shape[2], masked.shape[3]), rule).float()
        return UnetInputs(self.whole(examples, image), mask, masked)
