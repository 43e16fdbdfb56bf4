"""Images with masks and prompts: batches of the diffusion stages, and held-out cases of the evaluation.

A batch is a function of (seed, step). What the masks of a held-out case ask for:
random  every mask asks for a solid of another colour than the one that stood there, and no two masks of a
        image ask for the same colour: neither the surroundings nor another prompt gives the answer away
true    every mask asks for what stood there
Legend: b batch, r regions, h w pixels, c latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.random import Generator
from torch import Tensor

from datasets.geometry import Box
from inpainting.models.text_to_image.config import LAYOUTS
from inpainting.models.text_to_image.rca import shrink_masks
from tiny import world
from tiny.compositor.training import pm1_batch

CHUNK = 4  # images encoded together
PLAIN_FRACTION = 0.6  # of single-mask examples whose solid has one colour; in the scenes it is 0.3
SMALL = 24  # side of the small masks, pixels of an image of 128
PATTERN_FRACTION = 0.3  # of the random names; chosen
MARGIN = 2  # pixels between a solid and its mask


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


def single(views: world.Views, plain: Sequence[tuple[int, int]], rng: Generator) -> Example:
    """An image with one mask; `plain`: (scene, region) of all solids of one colour, drawn more often."""
    if rng.random() < PLAIN_FRACTION and len(plain):
        scene, index = plain[int(rng.integers(len(plain)))]
    else:
        scene = int(rng.integers(len(views)))
        index = int(rng.integers(len(views.regions[scene])))
    return make_example(views, scene, [views.regions[scene][index]], rng)


def several(views: world.Views, most: int, rng: Generator) -> Example:
    """An image with 1 to `most` masks in random order; scenes with many solids are drawn more often."""
    scene = int(max(rng.integers(len(views), size=3), key=lambda drawn: len(views.regions[drawn])))
    regions = views.regions[scene]
    chosen = world.spread_out(regions, rng.permutation(len(regions)).tolist(), most)
    count = int(rng.integers(1, len(chosen) + 1))
    return make_example(views, scene, chosen[:count], rng)


def make_example(views: world.Views, scene: int, regions: Sequence[world.Region], rng: Generator) -> Example:
    """Masks are the regions' boxes with a random margin on each side."""
    image_u8, size = views.images_u8[scene], views.images_u8.shape[1:3]
    boxes = tuple(world.grown(each.box_xyxy, rng.integers(0, 5, size=4).tolist(), size) for each in regions)
    return Example(scene, image_u8, boxes, tuple(world.caption_of(region.name) for region in regions))


class Encoder:
    """Images -> latents in bfloat16, a few at a time as a CPU's cache likes; whole images only once."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        self.vae, self.known = vae, dict[int, Tensor]()

    @torch.no_grad()
    def encode(self, images_pm1: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] -> scaled latents (b, c, h/4, w/4), float16."""
        rows = images_pm1.contiguous(memory_format=torch.channels_last).split(CHUNK)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = torch.cat([self.vae.encode(row).latents for row in rows])
        return (encoded.float() * self.vae.config.scaling_factor).half().contiguous()

    def conditions(self, examples: Sequence[Example], rng: Generator) -> UnetInputs:
        """Each batch samples its masks down by one of the two known rules."""
        image = pm1_batch(np.stack([example.image_u8 for example in examples]))
        size = (image.shape[2], image.shape[3])
        union = np.stack([world.box_masks(example.boxes, size).any(0) for example in examples])
        hole = torch.from_numpy(union)[:, None]
        masked = self.encode(image * ~hole).float()
        rule = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
        mask = shrink_masks(hole, (masked.shape[2], masked.shape[3]), rule).float()
        new = [row for row, example in enumerate(examples) if example.scene not in self.known]
        if new:
            for row, latents in zip(new, self.encode(image[new]), strict=True):
                self.known[examples[row].scene] = latents.clone()
        whole = torch.stack([self.known[example.scene].float() for example in examples])
        return UnetInputs(whole, mask, masked)


@dataclass(frozen=True, eq=False)
class PaintCase:
    """One image to paint: `wanted` names one solid per mask, `stood` those that stood there."""

    example: Example
    wanted: tuple[world.Name, ...]
    stood: tuple[world.Name, ...]


def make_cases(views: world.Views, prompts: str, fewest: int, most: int, seed: int) -> list[PaintCase]:
    """One case for every scene with at least `fewest` solids whose masks hardly overlap.

    The number of masks is drawn from what a scene allows, up to `most`, larger numbers more often. A mask is
    the solid's box and a margin, or exactly SMALL pixels a side where that is enough.
    """
    cases = []
    for scene in range(len(views)):
        rng = np.random.default_rng((seed, scene))
        image_u8, regions = views.images_u8[scene], views.regions[scene]
        chosen = world.spread_out(regions, rng.permutation(len(regions)).tolist(), most, MARGIN)
        if len(chosen) < fewest:
            continue
        count = max(int(rng.integers(fewest, len(chosen) + 1)) for _ in range(2))
        stood = [region.name for region in chosen[:count]]
        wanted = list(stood) if prompts == "true" else []
        for name in stood[len(wanted) :]:
            taken = {name.colour, *(other.colour for other in wanted)}
            free = [colour for colour in world.COLOUR_WORDS if colour not in taken]
            pattern = str(rng.choice(world.PATTERNED)) if rng.random() < PATTERN_FRACTION else ""
            wanted.append(world.Name(pattern, str(rng.choice(free)), str(rng.choice(world.SHAPE_WORDS))))
        boxes, (h, w) = [], image_u8.shape[:2]
        for left, top, right, bottom in (region.box_xyxy for region in chosen[:count]):
            if max(right - left, bottom - top) > SMALL - 2:
                boxes.append(world.grown((left, top, right, bottom), (MARGIN,) * 4, (h, w)))
                continue
            left = min(max(0, (left + right - SMALL) // 2), w - SMALL)
            top = min(max(0, (top + bottom - SMALL) // 2), h - SMALL)
            boxes.append((left, top, left + SMALL, top + SMALL))
        example = Example(scene, image_u8, tuple(boxes), tuple(world.caption_of(name) for name in wanted))
        cases.append(PaintCase(example, tuple(wanted), tuple(stood)))
    return cases
