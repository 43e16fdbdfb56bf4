"""Paintings whose regions hide behind solid colours, and the answer that names what was there (paper 3.1).

Legend: h w pixels of the image, r masked regions. Masks and colours are drawn at the image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpainting.data.choice import within
from inpainting.data.items import TRAIN, PaintingItems
from inpainting.data.paintings import Entity, Painting
from inpainting.prompts import (
    COLORS,
    RED,
    SINGLE,
    paint_masks,
    remove_overlaps,
    target_text,
    with_red,
)
from ldm.settings.config import check_settings, setting

MAKE_ROOTS = "python -m inpainting.data.ops extract-noun-chunk-roots"
BOOKKEEPING = ("fixed", "published")

Index = int | tuple[int, Sequence[float]]


@dataclass(frozen=True)
class LlavaOptions:
    """Which regions are masked, in which colours (published options of the dataset)."""

    data_dir: Path = setting(Path("data/mm_inp_dataset"), help="folder made by inpainting.data.ops")
    max_concepts: int | None = setting(
        5, low=1, high=len(COLORS), help="most regions; none: as many as colours"
    )
    remove_intersections: bool = setting(False, help="a mask loses what masks painted later cover")
    shuffle_concepts: bool = setting(True, help="regions in random order, else the largest first")
    masked_area_threshold: float | None = setting(0.65, low=0, high=1, help="largest share that is masked")
    only_gray_concept: bool = setting(False, help="one region alone (1Mask)")
    single_color: str = setting(
        "gray", choices=SINGLE, help="its name and paint; published: called gray, painted red (1Pred)"
    )
    bookkeeping: str = setting(
        "fixed",
        choices=BOOKKEEPING,
        help="fixed: exactly one red region in held-out images, any region alone; published: see docs",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def colors(self) -> int:
        """How many colours are used."""
        return self.max_concepts or len(COLORS)


@dataclass(frozen=True, eq=False)
class Region:
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
    entity_PILs               r crops of the objects                         (return_entity_PILs only)
    image_stems, entity_names, entity_paths    where they come from; the paths are those of the crops

    An index may be (index, alphas): the opacity of the masks in the order of painting, else all are 1.
    """

    def __init__(
        self,
        data_dir: str | Path,
        max_concepts: int | None = 5,
        generator: torch.Generator | None = None,
        remove_intersections: bool = False,
        shuffle_concepts: bool = False,
        masked_area_threshold: float | None = None,
        return_entity_PILs: bool = False,
        only_gray_concept: bool = False,
        override_gray: bool = False,
        split: str = TRAIN,
        *,
        seed: int = 42,
        single_color: str = "gray",
        bookkeeping: str = "fixed",
    ) -> None:
        """The published options, then ours; a `generator` gives its initial seed instead of `seed`.

        override_gray: the published spelling of single_color="published"
        """
        super().__init__(data_dir, split, seed, generator)
        single = "published" if override_gray else single_color
        self.options = LlavaOptions(
            Path(data_dir),
            max_concepts,
            remove_intersections,
            shuffle_concepts,
            masked_area_threshold,
            only_gray_concept,
            single,
            bookkeeping,
        )
        self.return_entity_PILs = return_entity_PILs

    @classmethod
    def of(
        cls, options: LlavaOptions, split: str, seed: int, return_entity_PILs: bool = False
    ) -> LlavaDataset:
        """The data set that settings describe."""
        made = cls(options.data_dir, split=split, seed=seed, return_entity_PILs=return_entity_PILs)
        made.options = options
        return made

    @property
    def tested(self) -> bool:
        """Whether one region is tested: in val and test."""
        return self.split != TRAIN

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Item `index`. In training the next image stands in for a damaged one, with a warning."""
        if isinstance(index, tuple):
            number, alphas = index
            if len(alphas) < self.options.colors:
                raise ValueError(f"{len(alphas)} alphas, there may be {self.options.colors} masks")
            return self.usable(number, lambda painting: self.example(painting, alphas))
        return self.usable(index, self.example)

    def example(self, painting: Painting, alphas: Sequence[float] | None = None) -> dict[str, Any]:
        """The item of one image."""
        rng = self.rng_of(painting.stem)
        image_u8 = painting.read_image()
        regions, tested = self.regions(painting, (image_u8.shape[0], image_u8.shape[1]), rng)
        if self.options.remove_intersections:
            masks = remove_overlaps([one.mask for one in regions])
            regions = [replace(one, mask=mask) for one, mask in zip(regions, masks, strict=True)]
        opacity = [1.0] * len(regions) if alphas is None else [float(one) for one in alphas]
        painted = list(zip(regions, opacity, strict=False))
        if self.options.only_gray_concept:
            painted = [] if tested is None else [painted[tested]]
        masked_u8 = paint_masks(
            image_u8,
            [one.mask for one, _ in painted],
            [one.paint for one, _ in painted],
            [alpha for _, alpha in painted],
            order="given",
        )
        answered = [regions[number] for number in self.answer_order(len(regions), tested, rng)]
        return self.item(painting, image_u8, masked_u8, answered)

    def regions(
        self, painting: Painting, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[Region], int | None]:
        """The regions in the order of painting, and which of them is tested or alone.

        Largest first, at most max_concepts, shuffled, as many from the front as the threshold allows, and
        again the largest first where there is a threshold. size: (h, w) of the image.
        """
        options = self.options
        masks = {one: painting.read_mask(one.name, size) for one in self.captioned(painting)}
        found = sorted(masks, key=lambda one: -np.count_nonzero(masks[one]))[: options.colors]
        palette = list(COLORS)[: options.colors]
        drawn = rng.permutation(len(palette))[: len(found)]
        sampled = [palette[number] for number in drawn]
        order = list(rng.permutation(len(found))) if options.shuffle_concepts else list(range(len(found)))
        stacked = torch.from_numpy(np.stack([masks[found[number]] for number in order]))
        order = order[: within(stacked, options.masked_area_threshold)]
        if options.masked_area_threshold is not None:
            order.sort()  # the largest is the first of `found`
        if options.bookkeeping == "fixed":
            order = self.seen(order, [masks[found[number]] for number in order])
        colors = [sampled[number] for number in order]
        if self.tested:
            colors = with_red(colors, sampled, rng, published=options.bookkeeping == "published")
        chosen = zip(order, colors, strict=True)
        regions = [Region(found[number], masks[found[number]], color, color) for number, color in chosen]
        return self.singled_out(regions, rng)

    @staticmethod
    def seen(order: list[int], masks: Sequence[np.ndarray]) -> list[int]:
        """Those of `order` that later paint leaves something of; nobody can answer about the others."""
        pairs = zip(order, remove_overlaps(masks), strict=True)
        return [number for number, mask in pairs if mask.any()]

    def singled_out(self, regions: list[Region], rng: np.random.Generator) -> tuple[list[Region], int | None]:
        """The regions and the number of the one that is tested or alone; alone it gets its own colour."""
        options = self.options
        reds = [number for number, one in enumerate(regions) if one.color == RED]
        tested = (reds[0] if reds else None) if self.tested else None
        if options.only_gray_concept and not self.tested:
            tested = 0 if options.bookkeeping == "published" else int(rng.integers(len(regions)))
        if options.only_gray_concept and tested is not None:
            color, paint = SINGLE[options.single_color]
            regions[tested] = replace(regions[tested], color=color, paint=paint)
        return regions, tested

    def answer_order(self, count: int, tested: int | None, rng: np.random.Generator) -> list[int]:
        """Which regions the answer names, in its order: the tested one last, or it alone."""
        order = (
            [int(one) for one in rng.permutation(count)] if self.options.shuffle_concepts else [*range(count)]
        )
        if tested is not None:
            order = [number for number in order if number != tested] + [tested]
        return order[-1:] if self.options.only_gray_concept else order

    def captioned(self, painting: Painting) -> list[Entity]:
        """The entities that can be asked for. Held-out ones need a noun root for the accuracy."""
        found = [one for one in painting.read_entities() if one.caption is not None]
        if self.tested and any(one.noun_chunk_root is None for one in found):
            raise ValueError(f"{painting.entities}: entities without noun_chunk_root; `{MAKE_ROOTS}` adds it")
        return found

    def item(
        self, painting: Painting, image_u8: np.ndarray, masked_u8: np.ndarray, regions: Sequence[Region]
    ) -> dict[str, Any]:
        """The dict of one example."""
        captions = [str(one.entity.caption) for one in regions]
        colors = [one.color for one in regions]
        made: dict[str, Any] = {
            "PIL_images": Image.fromarray(image_u8),
            "PIL_masked_images": Image.fromarray(masked_u8),
            "entity_captions": captions,
            "entity_concepts": [one.entity.concept for one in regions],
            "entity_colors": colors,
            "entity_noun_chunk_roots": [one.entity.noun_chunk_root or one.entity.concept for one in regions],
            "targets": target_text(list(zip(colors, captions, strict=True))),
            "image_stems": painting.stem,
            "entity_names": [one.entity.name for one in regions],
            "entity_paths": [painting.entities / f"{one.entity.name}.png" for one in regions],
        }
        if self.return_entity_PILs:
            crops = [painting.read_crop(one.entity.name) for one in regions]
            made["entity_PILs"] = [Image.fromarray(crop) for crop in crops]
        return made
