"""Paintings with masked regions and a prompt per region, for the inpainter (paper section 3.2).

Legend: r regions of one example, s side of the square crop, l tokens of one sequence, b batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from inpainting.data.choice import (
    ChoiceRules,
    Chosen,
    Manifest,
    check_same,
    choose,
    crop_image,
    crop_mask,
    layout_rows,
    read_manifest,
    write_manifest,
)
from inpainting.data.items import TRAIN, PaintingItems
from inpainting.data.paintings import (
    Painting,
    painting_description,
    read_prompts,
    read_source,
)
from inpainting.tokens import plan_tokens
from ldm.journal import in_order
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)

READERS = 4  # threads that read masks for a manifest
STACKED = ("pixel_values", "masks", "masked_pixel_values", "input_ids", "freestyle_attention_mask")
RENAMED = {"global_text": "global_texts"}


@dataclass(frozen=True)
class PaintingOptions:
    """Which regions of which paintings (published options of the dataset)."""

    data_dir: Path = setting(Path("data/mm_inp_dataset"), help="folder made by inpainting.data.ops")
    max_concepts: int = setting(5, low=1, high=10, help="most regions of one image")
    shuffle_concepts: bool = setting(True, help="regions in random order, else the largest first")
    masked_area_threshold: float | None = setting(0.65, low=0, high=1, help="largest share that is masked")
    resolution: int = setting(512, low=16, help="side of the square crop in pixels")
    drop_caption_probability: float = setting(
        0.1, low=0, high=1, help="share of images with one region that train without prompt"
    )

    def __post_init__(self) -> None:
        check_settings(self)


class InpaintingDataset(PaintingItems):
    """The annotated images of one split, sorted by name. An item is a dict:

    pixel_values              (3, s, s) in [-1, 1], the central square of the image
    masks                     (1, s, s) 0 or 1, union of the chosen regions
    masked_pixel_values       (3, s, s) in [-1, 1], 0 where masked
    input_ids                 (l,) the prompts in one sequence
    gt_texts, texts           list of r: captions; prompts, which may come from `texts_dir` or be dropped
    freestyle_layout_mask     (max_concepts + 1, s, s) 0 or 1; row 0 all ones, row k region k or background
    freestyle_attention_mask  (l,) 0 = shared token, k = only for region k        (both: freestyle only)
    global_text               description of the whole image                    (global_anns_path only)
    image_stems, all_masks    name; list of r masks (1, s, s)                     (val and test only)

    Its random decisions follow from (seed, name, epoch); the epoch counts in training only.
    """

    def __init__(
        self,
        data_dir: str | Path,
        tokenizer: CLIPTokenizer,
        max_concepts: int | None = 5,
        generator: torch.Generator | None = None,
        shuffle_concepts: bool = False,
        masked_area_threshold: float | None = None,
        resolution: int = 512,
        freestyle: bool = False,
        drop_caption_probability: float = 0.0,
        override_fn: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        texts_dir: str | Path | None = None,
        max_words: int | None = None,
        global_anns_path: str | Path | None = None,
        split: str = TRAIN,
        *,
        seed: int = 42,
    ) -> None:
        """The published options, and `seed`; a `generator` gives its initial seed instead of it.

        drop_caption_probability: how often the prompt of an image with one region is dropped, for guidance
        override_fn: called with every item
        texts_dir: folder of NAME.json, lists of prompts in the order of the chosen regions
        max_words: prompts and captions are cut to so many
        global_anns_path: JSON file of descriptions
        """
        self.rules = ChoiceRules(max_concepts, shuffle_concepts, masked_area_threshold, resolution)
        if not 0 <= drop_caption_probability <= 1:
            raise ValueError(f"drop_caption_probability must lie in [0, 1], got {drop_caption_probability}")
        self.tokenizer, self.freestyle = tokenizer, freestyle
        self.drop_caption_probability, self.override_fn = drop_caption_probability, override_fn
        self.texts_dir = None if texts_dir is None else Path(texts_dir)
        if self.texts_dir is not None and not self.texts_dir.is_dir():
            raise ValueError(
                f"texts_dir: there is no folder {self.texts_dir}, so there are no prompts to read"
            )
        self.max_words = max_words
        self.global_anns = None if global_anns_path is None else read_source(Path(global_anns_path))
        self.manifest: Manifest | None = None
        super().__init__(data_dir, split, seed, generator)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`. In training the next image stands in for a damaged one, with a warning."""
        return self.usable(index, self.example)

    def example(self, painting: Painting) -> dict[str, Any]:
        """The item of one image."""
        rng = self.rng_of(painting.stem)
        rgb_u8 = painting.read_image()
        chosen = self.chosen(painting, (rgb_u8.shape[0], rgb_u8.shape[1]), rng)
        captions = self.captions(painting, chosen.names)
        texts = self.prompts(painting, captions)
        if len(texts) == 1 and rng.random() < self.drop_caption_probability:
            texts = [""]
        union = chosen.masks.any(dim=0, keepdim=True).float()
        pixels = crop_image(rgb_u8, self.rules.resolution)
        plan = plan_tokens(texts, self.tokenizer, regions=self.freestyle)
        item: dict[str, Any] = {
            "pixel_values": pixels,
            "masks": union,
            "masked_pixel_values": pixels * (1 - union),
            "input_ids": plan.input_ids[0],
            "gt_texts": captions,
            "texts": texts,
        }
        if self.freestyle:
            item["freestyle_layout_mask"] = layout_rows(chosen.masks, self.rules.max_concepts)
            item["freestyle_attention_mask"] = plan.owners
        if self.global_anns is not None:
            item["global_text"] = painting_description(self.global_anns, painting.image.name)
        if self.split != TRAIN:
            item["image_stems"] = painting.stem
            item["all_masks"] = list(chosen.masks[:, None].float())
        return item if self.override_fn is None else self.override_fn(item)

    def chosen(self, painting: Painting, size: tuple[int, int], rng: np.random.Generator) -> Chosen:
        """The regions of one image of `size` (h, w): those of the manifest where there is one."""
        if self.manifest is None:
            return choose(painting, list(painting.read_captions()), size, self.rules, rng)
        names = list(self.manifest.items[painting.stem])
        crops = [crop_mask(painting.read_mask(name, size), self.rules.resolution) for name in names]
        return Chosen(tuple(names), torch.stack(crops))

    def captions(self, painting: Painting, names: Sequence[str]) -> list[str]:
        """The captions of regions."""
        found = painting.read_captions()
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{painting.entities}: {missing[0]} has no caption")
        return self.shortened([found[name] for name in names])

    def prompts(self, painting: Painting, captions: list[str]) -> list[str]:
        """The captions, or what `texts_dir` holds instead of them."""
        if self.texts_dir is None:
            return list(captions)
        return self.shortened(read_prompts(self.texts_dir / f"{painting.stem}.json", len(captions)))

    def shortened(self, texts: list[str]) -> list[str]:
        """Texts cut to max_words words."""
        return [" ".join(text.split(" ")[: self.max_words]) for text in texts]

    def follow(self, path: Path) -> Manifest:
        """Take the regions from the manifest at `path`; when there is none, choose them and write it.

        Images that cannot be used are left out of it, with the reason. Call it before a run, and with the
        same path in whatever reads the run's results.
        """
        asked = Manifest(self.split, self.seed, self.rules, {})
        if path.is_file():
            manifest = read_manifest(path)
            check_same(path, manifest, asked)
        else:
            manifest = self.choose_all()
            write_manifest(path, manifest)
        known = {one.stem: one for one in self.paintings}
        lacking = [stem for stem in manifest.items if stem not in known]
        if lacking:
            raise ValueError(f"{path} lists {lacking[0]}, which is not among the images of {self.data_dir}")
        self.paintings = [known[stem] for stem in sorted(manifest.items)]
        self.manifest = manifest
        return manifest

    def choose_all(self) -> Manifest:
        """Choose the regions of every image. Reads all images and masks, and so finds damaged ones."""

        def look(painting: Painting) -> tuple[str, ...] | ValueError:
            try:
                rgb_u8 = painting.read_image()
                size = (rgb_u8.shape[0], rgb_u8.shape[1])
                chosen = self.chosen(painting, size, self.rng_of(painting.stem))
                self.captions(painting, chosen.names)
                return chosen.names
            except ValueError as error:
                return error

        found = tqdm(in_order(look, self.paintings, READERS), total=len(self), desc="masks")
        results = dict(zip(self.stems, found, strict=True))
        reasons = {stem: str(one) for stem, one in results.items() if isinstance(one, ValueError)}
        for reason in reasons.values():
            log.warning("left out: %s", reason)
        items = {stem: one for stem, one in results.items() if not isinstance(one, ValueError)}
        if not items:
            raise ValueError(f"{self.data_dir}: no image of {self.split} can be used")
        return Manifest(self.split, self.seed, self.rules, items, {**self.left_out, **reasons})

    @staticmethod
    def collate_fn(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items -> batch: tensors (b, ...) stacked, texts, names and per-region masks as lists of b.

        Layouts become integers, as published, and get as many rows as the longest has.
        """
        result: dict[str, Any] = {}
        for key in batch[0]:
            values = [item[key] for item in batch]
            if key in STACKED:
                result[key] = torch.stack(values)
            elif key == "freestyle_layout_mask":
                result[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True).long()
            else:
                result[RENAMED.get(key, key)] = values
        return result
