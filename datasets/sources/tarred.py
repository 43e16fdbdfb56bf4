"""Training examples in tar shards, as `python -m datasets.tars` writes them: few large files for many small.

A shard keeps the convention of WebDataset: the files of an example share what is before the first dot.

    00000012.json          its name, its views, and which two are a pair
    00000012.0.jpg         the bytes of its first image, as the source has them
    00000012.0.depth.png   those of its depth map
    shard-00000.npy        beside shard-00000.tar: where each example begins, and where the last ends

An example is read alone and where it lies, so any order can go on at any place, and nothing stays in memory.
"""

import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.sources import coco, readers
from datasets.sources.image_source import Item, SourceConfig
from ldm.files import named_failure, read_json

RECORD = "source.json"  # in the folder of shards: what they were made of, and how many there are
DEPTH = "depth.png"


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.tar"


def is_whole(folder: Path, number: int) -> bool:
    """Whether a shard is finished: its index is written last."""
    path = shard_path(folder, number)
    return path.is_file() and path.with_suffix(".npy").is_file()


class TarItems(Sequence[Item]):
    """(name, shard, first byte, end) of every example of a folder, found when asked for."""

    def __init__(self, folder: Path, shards: int) -> None:
        if missing := [number for number in range(shards) if not is_whole(folder, number)]:
            path = shard_path(folder, missing[0])
            raise ValueError(f"{path} is not finished; the same `python -m datasets.tars` goes on")
        self.paths = [shard_path(folder, number) for number in range(shards)]
        self.places = [np.load(path.with_suffix(".npy")) for path in self.paths]
        self.ends = list(accumulate(len(places) - 1 for places in self.places))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Item:
        which = bisect_right(self.ends, index)
        row = index - (self.ends[which - 1] if which else 0)
        return f"{index:08d}", self.paths[which], *self.places[which][row : row + 2].tolist()


@dataclass(frozen=True, kw_only=True)
class TarConfig(SourceConfig):
    folder: Path

    def read(self) -> Any:
        return TarItems(self.folder, read_json(self.folder / RECORD)["shards"])

    def pairs(self, item: Item) -> list[readers.ViewPair]:
        name, path, start, end = item
        with path.open("rb") as file:
            file.seek(start)
            data = io.BytesIO(file.read(end - start))
        files: dict[str, Any] = {}
        with named_failure(f"{path}: example {name} is damaged", tarfile.TarError, KeyError, ValueError):
            with tarfile.open(fileobj=data) as tar:
                for member in tar:
                    files[member.name.partition(".")[2]] = tar.extractfile(member).read()  # type: ignore[union-attr]
            facts = json.loads(files["json"])

        def view(image: str, mask: Any, target: bool) -> readers.ObjectView:
            depth, where = files.get(f"{Path(image).stem}.{DEPTH}"), path / f"{facts['name']}.{image}"
            tree = readers.Tree(path, None if depth is None else path) if target else None

            def outline() -> np.ndarray:
                if isinstance(mask, str):  # why there is none
                    raise Rejected(mask)
                return coco.segment_mask(mask, tuple(mask["size"]), str(where))

            return readers.ObjectView(where, outline, tree, files[image], depth)

        views = [view(**entry) for entry in facts["views"]]
        return [(views[first], views[second]) for first, second in facts["pairs"]]

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        yield from dict.fromkeys(view for pair in self.pairs(item) for view in pair)

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        pairs = self.pairs(item)
        for k in rng.permutation(len(pairs)):
            yield pairs[k]
