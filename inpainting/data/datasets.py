"""Paintings with masked regions and a prompt per region, for the inpainter (paper section 3.2).

Legend: r regions of one example, s side of the square crop, l tokens of one sequence, b batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from datasets.sources.readers import images_in
from inpainting.data.choice import MaskManifest, centre_crop, layout_rows, within
from inpainting.data.paintings import (
    ANNOTATIONS,
    SPLITS,
    Painting,
    PaintingOptions,
    painting_description,
    source_file,
    write_object,
)
from inpainting.tokens import plan_tokens
from ldm.files import read_json
from ldm.journal import attempt_in_order
from ldm.seeds import seed_of

log = logging.getLogger(__name__)

TRAIN = "train"
SHOWN = 5  # images left out that are named at once
READERS = 4  # threads that read masks for a manifest
STACKED = ("pixel_values", "masks", "masked_pixel_values", "input_ids", "freestyle_attention_mask")


class PaintingItems(Dataset[dict[str, Any]]):
    """The captioned images of one split, sorted by name.

    Random decisions about an image follow from (seed, name, epoch), never from workers, batch size or the
    order of files; the epoch counts in training only.
    """

    def __init__(self, data_dir: Path, split: str, seed: int) -> None:
        self.data_dir, self.split, self.seed, self.epoch = data_dir, split, seed, 0
        self.paintings: list[Painting] = []
        self.left_out: dict[str, str] = {}
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        folder = data_dir / "images" / split
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; `python -m inpainting.data.ops build` makes the data")
        for path in images_in(folder):
            masks, entities = data_dir / "masks" / path.stem, data_dir / "entities" / path.stem
            painting = Painting(path.stem, path, masks, entities)
            try:
                if (entities / ANNOTATIONS).is_file():
                    painting.read_captions()
                    self.paintings.append(painting)
            except ValueError as error:
                self.left_out[painting.stem] = str(error)
        for reason in list(self.left_out.values())[:SHOWN]:
            log.warning("left out: %s", reason)
        if len(self.left_out) > SHOWN:
            log.warning("%d images of %s are left out", len(self.left_out), split)
        if not self.paintings:
            raise ValueError(f"{self.data_dir}: no annotated image in the split {split}")

    def __len__(self) -> int:
        return len(self.paintings)

    @property
    def stems(self) -> list[str]:
        """Names of the images, in the order of the items."""
        return [painting.stem for painting in self.paintings]

    def set_epoch(self, epoch: int) -> None:
        """Other random decisions from now on (training)."""
        self.epoch = epoch

    def rng_of(self, stem: str) -> np.random.Generator:
        """The random numbers of one image in this epoch."""
        return np.random.default_rng(seed_of(self.seed, stem, self.epoch if self.split == TRAIN else 0))

    def usable(self, index: int, example: Callable[[Painting], dict[str, Any]]) -> dict[str, Any]:
        """example() of image `index`; in training the next stands in for a damaged one, with a warning."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if self.split != TRAIN:
            return example(self.paintings[index])
        reason = ""
        for step in range(len(self)):
            painting = self.paintings[(index + step) % len(self)]
            try:
                return example(painting)
            except ValueError as error:
                reason = str(error)
                if painting.stem not in self.left_out:
                    log.warning("left out: %s", reason)
                self.left_out[painting.stem] = reason
        raise ValueError(f"{self.data_dir}: no image of {self.split} can be used, such as {reason}")


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
    """

    def __init__(
        self,
        options: PaintingOptions,
        tokenizer: CLIPTokenizer,
        split: str = TRAIN,
        *,
        seed: int = 42,
        freestyle: bool = False,
        texts_dir: Path | None = None,
        global_anns_path: Path | None = None,
    ) -> None:
        """freestyle: with the layout of regions and the region of each token

        texts_dir: folder of NAME.json, lists of prompts in the order of the chosen regions
        global_anns_path: JSON file of descriptions
        """
        self.options, self.tokenizer = options, tokenizer
        self.freestyle, self.texts_dir = freestyle, texts_dir
        if texts_dir is not None and not texts_dir.is_dir():
            raise ValueError(f"texts_dir: there is no folder {texts_dir}, so there are no prompts to read")
        self.global_anns = None if global_anns_path is None else read_json(source_file(global_anns_path))
        self.manifest: MaskManifest | None = None
        super().__init__(options.data_dir, split, seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`. In training the next image stands in for a damaged one, with a warning."""
        return self.usable(index, self.example)

    def example(self, painting: Painting) -> dict[str, Any]:
        """The item of one image."""
        rng = self.rng_of(painting.stem)
        rgb_u8 = painting.read_image()
        captions, masks = self.chosen(painting, rgb_u8, rng)[1:]
        texts = captions if self.texts_dir is None else self.prompts(painting, len(captions))
        drops = self.split == TRAIN and len(texts) == 1
        if drops and rng.random() < self.options.drop_caption_probability:
            texts = [""]
        union = masks.any(dim=0, keepdim=True).float()
        pixels = centre_crop(rgb_u8, self.options.resolution)
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
            item["freestyle_layout_mask"] = layout_rows(masks, self.options.max_concepts)
            item["freestyle_attention_mask"] = plan.token_region_ids
        if self.global_anns is not None:
            item["global_text"] = painting_description(self.global_anns, painting.image.name)
        if self.split != TRAIN:
            item["image_stems"] = painting.stem
            item["all_masks"] = list(masks[:, None].float())
        return item

    def chosen(
        self, painting: Painting, rgb_u8: np.ndarray, rng: np.random.Generator
    ) -> tuple[tuple[str, ...], list[str], Tensor]:
        """Names, captions and masks (r, s, s) of an image's regions: those of the manifest if there is one.

        Else the largest first (on the whole image), at most max_concepts, shuffled, and then as many from the
        front as the threshold allows. Regions outside the crop are no candidates.
        """
        options, captions = self.options, painting.read_captions()
        names = list(captions) if self.manifest is None else list(self.manifest.items[painting.stem])
        missing = [name for name in names if name not in captions]
        if missing:
            raise ValueError(f"{painting.entities}: {missing[0]} has no caption")
        masks = {name: painting.read_mask(name, (rgb_u8.shape[0], rgb_u8.shape[1])) for name in names}
        crops = {name: centre_crop(mask, options.resolution) for name, mask in masks.items()}
        if self.manifest is None:
            by_area = sorted(names, key=lambda name: -np.count_nonzero(masks[name]))
            names = [name for name in by_area if crops[name].any()]
            if not names:
                raise ValueError(
                    f"{painting.image}: no region lies in the central {options.resolution} pixel crop"
                )
            if options.max_concepts == 1:
                names = [names[int(rng.integers(len(names)))]]
            names = names[: options.max_concepts]
            if options.shuffle_concepts:
                names = [names[index] for index in rng.permutation(len(names))]
            names = names[
                : within(torch.stack([crops[name] for name in names]), options.masked_area_threshold)
            ]
        return tuple(names), [captions[name] for name in names], torch.stack([crops[name] for name in names])

    def prompts(self, painting: Painting, count: int) -> list[str]:
        """The generated prompts of one image: a JSON list, one text per masked region."""
        path = Path(str(self.texts_dir)) / f"{painting.stem}.json"
        texts = read_json(path, list)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path} is no list of texts")
        if len(texts) != count:
            raise ValueError(f"{path} has {len(texts)} prompts, its image {count} masked regions")
        return texts

    def follow(self, path: Path) -> MaskManifest:
        """Take the regions from the manifest at `path`; when there is none, choose them and write it.

        Images that cannot be used are left out of it, with the reason. Call it before a run, and with the
        same path in whatever reads the run's results.
        """
        if path.is_file():
            manifest = MaskManifest.read(path)
            before = {"split": manifest.split, "seed": manifest.seed, **manifest.rules}
            for name, value in {"split": self.split, "seed": self.seed, **self.options.rules}.items():
                if before.get(name) != value:
                    raise ValueError(
                        f"{path} was written with {name} {before.get(name)}, the settings say {value}; "
                        "use the same settings, or another output folder"
                    )
        else:
            manifest = self.choose_all()
            write_object(path, asdict(manifest))
        known = {painting.stem: painting for painting in self.paintings}
        lacking = [stem for stem in manifest.items if stem not in known]
        if lacking:
            raise ValueError(f"{path} lists {lacking[0]}, which is not among the images of {self.data_dir}")
        self.paintings = [known[stem] for stem in sorted(manifest.items)]
        self.manifest = manifest
        return manifest

    def choose_all(self) -> MaskManifest:
        """Choose the regions of every image. Reads all images and masks, and so finds damaged ones."""

        def choose(painting: Painting) -> tuple[str, ...]:
            return self.chosen(painting, painting.read_image(), self.rng_of(painting.stem))[0]

        choices = tqdm(attempt_in_order(choose, self.paintings, READERS), total=len(self), desc="masks")
        items, left_out = {}, dict(self.left_out)
        for stem, names in zip(self.stems, choices, strict=True):
            if isinstance(names, ValueError):
                log.warning("left out: %s", names)
                left_out[stem] = str(names)
            else:
                items[stem] = names
        if not items:
            raise ValueError(f"{self.data_dir}: no image of {self.split} can be used")
        return MaskManifest(self.split, self.seed, self.options.rules, items, left_out)

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
                result["global_texts" if key == "global_text" else key] = values
        return result
