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
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from datasets.sources.readers import images_in
from inpainting.data import paintings
from inpainting.tokens import plan_tokens
from ldm.files import read_json
from ldm.images import read_image, read_mask, to_pm1
from ldm.journal import attempt_in_order
from ldm.seeds import seed_of

log = logging.getLogger(__name__)

TRAIN = "train"
SHOWN = 5  # images left out that are named at once
READERS = 4  # threads that read masks for a manifest
STACKED = ("pixel_values", "masks", "masked_pixel_values", "input_ids", "freestyle_attention_mask")


def within(masks: Tensor, threshold: float | None) -> int:
    """How many of (r, s, s) bool, from the first on, cover at most a fraction `threshold`; at least 1."""
    if threshold is None:
        return len(masks)
    covered = masks.cummax(dim=0).values.float().mean(dim=(1, 2)).double()
    return max(1, int((covered <= threshold).sum()))


def centre_crop(pixels: np.ndarray, side: int) -> Tensor:
    """The centre of an image whose shorter side is scaled to `side`; sizes are rounded as by torchvision.

    pixels: (h, w, 3) uint8 -> (3, s, s) in [-1, 1], antialiased; bool (h, w) -> bool (s, s), nearest pixel
    """
    h, w = pixels.shape[:2]
    h, w = (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
    top, left = round((h - side) / 2), round((w - side) / 2)
    if pixels.dtype == bool:
        scaled = F.interpolate(torch.from_numpy(pixels)[None, None].float(), size=(h, w), mode="nearest")
        return scaled[0, 0, top : top + side, left : left + side] > 0
    image_u8 = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
    return to_pm1(image_u8[top : top + side, left : left + side])


def layout_rows(masks: Tensor, max_concepts: int | None) -> Tensor:
    """(r, s, s) bool -> (max_concepts + 1, s, s) float: all ones; each region with the background; zeros."""
    background = ~masks.any(dim=0)
    rows = torch.cat([torch.ones_like(masks[:1]), masks | background]).float()
    missing = (len(masks) if max_concepts is None else max_concepts) + 1 - len(rows)
    return F.pad(rows, (0, 0, 0, 0, 0, missing))


class PaintingItems(Dataset[dict[str, Any]]):
    """The captioned images of one split, sorted by name; what is random follows from (seed, name, epoch)."""

    def __init__(self, data_dir: Path, split: str, seed: int) -> None:
        self.data_dir, self.split, self.seed, self.epoch = data_dir, split, seed, 0
        self.paintings: list[paintings.Painting] = []
        self.left_out: dict[str, str] = {}
        folder = data_dir / "images" / split
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; `python -m inpainting.data.ops build` makes the data")
        for path in images_in(folder):
            masks, entities = data_dir / "masks" / path.stem, data_dir / "entities" / path.stem
            painting = paintings.Painting(path.stem, path, masks, entities)
            try:
                if painting.annotations.is_file():
                    painting.read_captions()
                    self.paintings.append(painting)
            except ValueError as error:
                self.left_out[painting.stem] = str(error)
        for reason in list(self.left_out.values())[:SHOWN]:
            log.warning("left out: %s", reason)
        if len(self.left_out) > SHOWN:
            log.warning("%d images of %s are left out", len(self.left_out), split)
        if not self.paintings:
            raise ValueError(f"{data_dir}: no annotated image in the split {split}")

    def __len__(self) -> int:
        return len(self.paintings)

    @property
    def stems(self) -> list[str]:
        return [painting.stem for painting in self.paintings]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def rng_of(self, stem: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.seed, stem, self.epoch if self.split == TRAIN else 0))

    def usable(self, index: int, example: Callable[[paintings.Painting], dict[str, Any]]) -> dict[str, Any]:
        """example() of image `index`; in training the next stands in for a damaged one, with a warning."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if self.split != TRAIN:
            return example(self.paintings[index])
        for step in range(len(self)):
            painting = self.paintings[(index + step) % len(self)]
            try:
                return example(painting)
            except ValueError as error:
                if painting.stem not in self.left_out:
                    log.warning("left out: %s", error)
                self.left_out[painting.stem] = reason = str(error)
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
        self, options: paintings.PaintingOptions, tokenizer: CLIPTokenizer, split: str = TRAIN, *,
        seed: int = 42, freestyle: bool = False, texts_dir: Path | None = None,
        global_anns_path: Path | None = None,
    ) -> None:  # fmt: skip
        self.options, self.tokenizer = options, tokenizer
        self.freestyle, self.texts_dir = freestyle, texts_dir
        if texts_dir is not None and not texts_dir.is_dir():
            raise ValueError(f"texts_dir: there is no folder {texts_dir}, so there are no prompts to read")
        self.global_anns = read_json(paintings.source_file(global_anns_path)) if global_anns_path else None
        self.manifest: paintings.MaskManifest | None = None
        super().__init__(options.data_dir, split, seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.usable(index, self.example)

    def example(self, painting: paintings.Painting) -> dict[str, Any]:
        rng, image = self.rng_of(painting.stem), read_image(painting.image)
        by_name, masks = self.chosen(painting, image.size, rng)
        texts = captions = list(by_name.values())
        if self.texts_dir is not None:
            texts = self.prompts(painting, len(captions))
        drops = self.split == TRAIN and len(texts) == 1
        if drops and rng.random() < self.options.drop_caption_probability:
            texts = [""]
        union = masks.any(dim=0, keepdim=True).float()
        pixels = centre_crop(image.rgb_u8, self.options.resolution)
        plan = plan_tokens(texts, self.tokenizer, regions=self.freestyle)
        item: dict[str, Any] = {"pixel_values": pixels, "masks": union}
        item |= {"masked_pixel_values": pixels * (1 - union), "input_ids": plan.input_ids[0]}
        item |= {"gt_texts": captions, "texts": texts}
        if self.freestyle:
            item["freestyle_layout_mask"] = layout_rows(masks, self.options.max_concepts)
            item["freestyle_attention_mask"] = plan.token_region_ids
        if self.global_anns is not None:
            item["global_text"] = paintings.painting_description(self.global_anns, painting.image.name)
        if self.split != TRAIN:
            item["image_stems"] = painting.stem
            item["all_masks"] = list(masks[:, None].float())
        return item

    def chosen(
        self, painting: paintings.Painting, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[dict[str, str], Tensor]:
        """Captions by name and masks (r, s, s) of an image's regions: those of the manifest if there is one.

        Else the largest first (on the whole image), at most max_concepts, shuffled, and then as many from the
        front as the threshold allows. Regions outside the crop are no candidates. size: (h, w) of the image.
        """
        options, side, captions = self.options, self.options.resolution, painting.read_captions()
        names = list(captions if self.manifest is None else self.manifest.items[painting.stem])
        if missing := [name for name in names if name not in captions]:
            raise ValueError(f"{painting.entities}: {missing[0]} has no caption")
        masks = {name: read_mask(painting.masks / f"{name}.png", size=size) for name in names}
        crops = {name: centre_crop(mask, side) for name, mask in masks.items()}
        if self.manifest is None:
            by_area = sorted(names, key=lambda name: -np.count_nonzero(masks[name]))
            names = [name for name in by_area if crops[name].any()]
            if not names:
                raise ValueError(f"{painting.image}: no region lies in the central {side} pixel crop")
            if options.max_concepts == 1:
                names = [names[int(rng.integers(len(names)))]]
            names = names[: options.max_concepts]
            if options.shuffle_concepts:
                names = [names[index] for index in rng.permutation(len(names))]
            stacked = torch.stack([crops[name] for name in names])
            names = names[: within(stacked, options.masked_area_threshold)]
        return {name: captions[name] for name in names}, torch.stack([crops[name] for name in names])

    def prompts(self, painting: paintings.Painting, count: int) -> list[str]:
        """The generated prompts of one image, one per masked region."""
        path = Path(str(self.texts_dir)) / f"{painting.stem}.json"
        texts = read_json(path, list)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path} is no list of texts")
        if len(texts) != count:
            raise ValueError(f"{path} has {len(texts)} prompts, its image {count} masked regions")
        return texts

    def follow(self, path: Path) -> paintings.MaskManifest:
        """Take the regions from the manifest at `path`; when there is none, choose them and write it."""
        if path.is_file():
            manifest = paintings.MaskManifest.read(path)
            before = {"split": manifest.split, "seed": manifest.seed, **manifest.rules}
            for name, value in {"split": self.split, "seed": self.seed, **self.options.rules}.items():
                if before.get(name) != value:
                    wrong = f"{path} was written with {name} {before.get(name)}, the settings say {value};"
                    raise ValueError(f"{wrong} use the same settings, or another output folder")
        else:
            manifest = self.choose_all()
            paintings.write_object(path, asdict(manifest))
        known = {painting.stem: painting for painting in self.paintings}
        lacking = [stem for stem in manifest.items if stem not in known]
        if lacking:
            raise ValueError(f"{path} lists {lacking[0]}, which is not among the images of {self.data_dir}")
        self.paintings = [known[stem] for stem in sorted(manifest.items)]
        self.manifest = manifest
        return manifest

    def choose_all(self) -> paintings.MaskManifest:
        """Choose the regions of every image; those that cannot be used are left out, with the reason."""

        def choose(painting: paintings.Painting) -> tuple[str, ...]:
            size = read_image(painting.image).size
            return tuple(self.chosen(painting, size, self.rng_of(painting.stem))[0])

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
        return paintings.MaskManifest(self.split, self.seed, self.options.rules, items, left_out)

    @staticmethod
    def collate_fn(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items -> batch: tensors (b, ...) stacked, texts, names and per-region masks as lists of b."""
        result: dict[str, Any] = {}
        for key in batch[0]:
            values = [item[key] for item in batch]
            if key in STACKED:
                result[key] = torch.stack(values)
            elif key == "freestyle_layout_mask":
                result[key] = nn.utils.rnn.pad_sequence(values, batch_first=True).long()
            else:
                result["global_texts" if key == "global_text" else key] = values
        return result
