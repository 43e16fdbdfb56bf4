"""Common part of the data sets of paintings: images, random numbers, replacement of damaged images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from inpainting.data.paintings import Painting, list_paintings
from ldm.seeds import seed_of

log = logging.getLogger(__name__)

TRAIN = "train"
SHOWN = 5  # images left out that are named at once


class PaintingItems(Dataset[dict[str, Any]]):
    """The captioned images of one split, sorted by name.

    Random decisions about an image follow from (seed, name, epoch), never from workers, batch size or the
    order of files; the epoch counts in training only.
    """

    def __init__(
        self, data_dir: str | Path, split: str, seed: int, generator: torch.Generator | None = None
    ) -> None:
        """generator: its initial seed is used instead of `seed`"""
        self.data_dir, self.split = Path(data_dir), split
        self.seed = seed if generator is None else generator.initial_seed()
        self.epoch = 0
        self.paintings: list[Painting] = []
        self.left_out: dict[str, str] = {}
        for painting in list_paintings(self.data_dir, split):
            try:
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
