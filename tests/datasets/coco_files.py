"""Small annotation files in the format of COCO, and images for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.sources.still import LvisConfig

SIZE = (20, 30)  # (h, w)
SQUARE = [[6.0, 5.0, 16.0, 5.0, 16.0, 15.0, 6.0, 15.0]]


def image(key: Any, name: str = "", **more: Any) -> dict[str, Any]:
    named = {"file_name": name} if name else {}
    return {"id": key, **named, "height": SIZE[0], "width": SIZE[1], **more}


def annotation(key: Any, of: Any, **more: Any) -> dict[str, Any]:
    box = [6.0, 5.0, 10.0, 10.0]
    return {"id": key, "image_id": of, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0,
            "segmentation": SQUARE, **more}  # fmt: skip


def put(path: Path, colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (colour, 0, 0)).save(path)


class Tree:
    """Instances files, and what is read of them."""

    def __init__(self, home: Path) -> None:
        self.images, self.depth, self.path = home / "images", home / "depth", home / "instances.json"
        self.images.mkdir()
        self.depth.mkdir()

    def write(self, images: list[Any], annotations: list[Any], categories: Any = ({"id": 1, "name": "cup"},)):
        document = {"images": images, "annotations": annotations, "categories": list(categories)}
        self.path.write_text(json.dumps(document))
        return document

    def lvis(self, images: list[Any], annotations: list[Any]) -> dict[str, int]:
        """Name of every item -> its objects."""
        self.write(images, annotations)
        config = LvisConfig(images=self.images, depth=self.depth, annotations=self.path, min_pixels=10)
        source = config.open()
        assert all(view.image == self.images / source.name(k) for k in range(len(source))
                   for view in source.views(k))  # fmt: skip
        return {source.name(k): len(list(source.views(k))) for k in range(len(source))}


def square(top: int = 5, left: int = 6, side: int = 10) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths column by column, the unset ones first."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    return np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1])]).tolist()
