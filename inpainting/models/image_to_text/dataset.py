"""Paintings whose regions hide behind solid colours, and the answer that names what was there (paper 3.1).

Legend: h w pixels of the image, r masked regions. Masks and colours are drawn at the image's own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpainting.data.choice import within
from inpainting.data.datasets import TRAIN, PaintingItems
from inpainting.data.paintings import Entity, Painting
from inpainting.models.image_to_text.settings import LlavaOptions
from inpainting.prompts import COLORS, RED, SINGLE, paint_masks, remove_overlaps, target_text

MAKE_ROOTS = "python -m inpainting.data.ops extract-noun-chunk-roots"


@dataclass(frozen=True, eq=False)
class MaskedRegion:
    """A masked region: its entity, its mask (h, w) bool, what question and answer call it, its paint."""

    entity: Entity
    mask: np.ndarray
    color: str
    paint: str


class LlavaDataset(PaintingItems):
    """The captioned images of one split, sorted by name. An item is a dict, its lists in answer order:

    PIL_images                the image
    PIL_masked_images         the image with its regions painted over
    entity_captions           r texts, the prompts to be learnt
    entity_concepts           r texts
    entity_colors             r names; the tested region, red or alone, is the last one in val and test
    entity_noun_chunk_roots   r texts
    targets                   the answer, `<red>...</red><green>...</green>`
    image_stems, entity_names, entity_paths    where they come from; the paths are those of the crops
    """

    def __init__(self, options: LlavaOptions, split: str = TRAIN, seed: int = 42) -> None:
        super().__init__(options.data_dir, split, seed)
        self.options = options
        self.tested = split != TRAIN  # one region is tested

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`. In training the next image stands in for a damaged one, with a warning."""
        return self.with_alphas(index)

    def with_alphas(self, index: int, alphas: Sequence[float] | None = None) -> dict[str, Any]:
        """Item `index`; alphas: opacity of the masks in the order of painting, else all are 1."""
        if alphas is not None and len(alphas) < self.options.colors:
            raise ValueError(f"{len(alphas)} alphas, there may be {self.options.colors} masks")
        return self.usable(index, lambda painting: self.example(painting, alphas))

    def example(self, painting: Painting, alphas: Sequence[float] | None = None) -> dict[str, Any]:
        """The item of one image."""
        rng = self.rng_of(painting.stem)
        image_u8 = painting.read_image()
        regions, tested = self.regions(painting, (image_u8.shape[0], image_u8.shape[1]), rng)
        masks = [region.mask for region in regions]
        if self.options.remove_intersections:
            masks = remove_overlaps(masks)
        painted = list(range(len(regions)))
        if self.options.only_gray_concept:
            painted = [] if tested is None else [tested]
        masked_u8 = paint_masks(
            image_u8,
            [masks[number] for number in painted],
            [regions[number].paint for number in painted],
            None if alphas is None else [float(alphas[number]) for number in painted],
            order="given",
        )
        order = list(range(len(regions)))
        if self.options.shuffle_concepts:
            order = rng.permutation(len(regions)).tolist()
        if tested is not None:  # the answer names it last, or it alone
            order = [number for number in order if number != tested] + [tested]
        answered = [regions[number] for number in (order[-1:] if self.options.only_gray_concept else order)]
        entities, colors = [region.entity for region in answered], [region.color for region in answered]
        captions = [str(entity.caption) for entity in entities]
        return {
            "PIL_images": Image.fromarray(image_u8),
            "PIL_masked_images": Image.fromarray(masked_u8),
            "entity_captions": captions,
            "entity_concepts": [entity.concept for entity in entities],
            "entity_colors": colors,
            "entity_noun_chunk_roots": [entity.noun_chunk_root or entity.concept for entity in entities],
            "targets": target_text(list(zip(colors, captions, strict=True))),
            "image_stems": painting.stem,
            "entity_names": [entity.name for entity in entities],
            "entity_paths": [painting.entities / f"{entity.name}.png" for entity in entities],
        }

    def regions(
        self, painting: Painting, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[MaskedRegion], int | None]:
        """The regions in the order of painting, and which of them is tested or alone.

        Largest first, at most max_concepts, shuffled, as many from the front as the threshold allows, and
        again the largest first where there is a threshold. size: (h, w) of the image.
        """
        options, published = self.options, self.options.bookkeeping == "published"
        captioned = [entity for entity in painting.read_entities() if entity.caption is not None]
        if self.tested and any(entity.noun_chunk_root is None for entity in captioned):  # for the accuracy
            raise ValueError(f"{painting.entities}: entities without noun_chunk_root; `{MAKE_ROOTS}` adds it")
        masks = {entity: painting.read_mask(entity.name, size) for entity in captioned}
        entities = sorted(masks, key=lambda entity: -np.count_nonzero(masks[entity]))[: options.colors]
        palette = list(COLORS)[: options.colors]
        sampled = [palette[number] for number in rng.permutation(len(palette))[: len(entities)]]
        order = list(range(len(entities)))
        if options.shuffle_concepts:
            order = list(rng.permutation(len(entities)))
        stacked = torch.from_numpy(np.stack([masks[entities[number]] for number in order]))
        order = order[: within(stacked, options.masked_area_threshold)]
        if options.masked_area_threshold is not None:
            order.sort()  # the largest is the first of `entities`
        if not published:  # nobody can answer about a region that later paint hides
            visible = remove_overlaps([masks[entities[number]] for number in order])
            order = [number for number, mask in zip(order, visible, strict=True) if mask.any()]
        colors = [sampled[number] for number in order]
        # One held-out region is red. Published: looked for among the first colours that were sampled, before
        # regions were dropped, so that two regions may be red, or none.
        if self.tested and RED not in (sampled[: len(colors)] if published else colors):
            colors[int(rng.integers(len(colors)))] = RED
        tested = colors.index(RED) if self.tested and RED in colors else None
        paints = list(colors)
        if options.only_gray_concept:
            if not self.tested:
                tested = 0 if published else int(rng.integers(len(colors)))
            if tested is not None:
                colors[tested], paints[tested] = SINGLE[options.single_color]
        chosen = [entities[number] for number in order]
        drawn = zip(chosen, colors, paints, strict=True)
        return [MaskedRegion(entity, masks[entity], color, paint) for entity, color, paint in drawn], tested
