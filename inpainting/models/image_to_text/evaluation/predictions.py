"""Predicted prompts as a file: one JSON object a line, one line per masked region.

    {"stem": "monet_haystacks", "region": "mask_0", "color": "red", "last": true, "root": "haystacks",
     "prediction": "two haystacks", "caption": "two haystacks in the evening sun",
     "crop": "data/mm_inp_dataset/entities/monet_haystacks/mask_0.png"}

In place of `crop` there may be `image` and `box`, pixels x0, y0, x1, y1; where the image belongs to
painting data, the region's own image there is taken all the same (published). Further keys are left alone.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ldm.files import numbered_lines, same_file
from ldm.images import read_image
from ldm.journal import parse_line


@dataclass(frozen=True)
class Prediction:
    """The prediction for one region, and its ground truth."""

    stem: str
    region: str  # name of the entity: mask_0, mask_1, ...
    prediction: str
    caption: str  # the true description
    root: str  # root of the first noun chunk of the true concept
    last: bool  # the region that the model described last
    color: str = ""
    crop: str = ""  # path of the region's own image
    image: str = ""  # path of the whole image, where there is no crop
    box: tuple[int, int, int, int] | None = None  # xyxy, pixels of `image`

    def __post_init__(self) -> None:
        if not self.stem or not self.region:
            raise ValueError("`stem` and `region` must not be empty")
        if not self.root.strip():
            raise ValueError(
                "`root` is empty; `python -m inpainting.data.ops extract-noun-chunk-roots` finds noun roots"
            )

    @property
    def shown(self) -> bool:
        """Whether the row says where its region can be seen."""
        return bool(self.crop) or (bool(self.image) and self.box is not None)

    @property
    def crop_path(self) -> Path | None:
        """DATA/entities/STEM/REGION.png, as named by `crop` or next to DATA/images/SPLIT/STEM.jpg."""
        if self.crop:
            return Path(self.crop)
        if not self.image:
            return None
        data_dir = Path(self.image).resolve().parents[:3][-1]
        path = same_file(data_dir / "entities" / self.stem / f"{self.region}.png")
        return path if path.is_file() else None

    def read_crop(self) -> np.ndarray:
        """RGB (h, w, 3) uint8 of the region; ValueError where the image is missing or the box is empty."""
        path = self.crop_path
        if path is not None:
            return read_image(path).rgb_u8
        x0, y0, x1, y1 = self.box or (0, 0, 0, 0)
        part = read_image(Path(self.image)).rgb_u8[max(y0, 0) : y1, max(x0, 0) : x1]
        if not part.size:
            raise ValueError(f"{self.image}: box {list(self.box or ())} holds no pixel")
        return part

    @classmethod
    def from_line(cls, line: str) -> Prediction:
        """A line of the file, checked."""
        if line[:1].isdigit() and "\t" in line:
            raise ValueError(
                "the published predictions.txt numbers its lines within each batch and names no image, so it "
                "cannot be measured; run the test configuration again, it writes predictions.jsonl"
            )
        values = parse_line(line)
        texts = {name: values.get(name) for name in ("stem", "region", "prediction", "caption", "root")}
        texts |= {name: values.get(name) or "" for name in ("color", "crop", "image")}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise ValueError(f"`{name}` must be a text, got {value!r}")
        last, box = values.get("last"), values.get("box")
        if not isinstance(last, bool):
            raise ValueError(f"`last` must be true or false, got {last!r}")
        if box is not None and not (isinstance(box, list) and [type(side) for side in box] == [int] * 4):
            raise ValueError(f"`box` must be four pixels x0, y0, x1, y1, got {box!r}")
        return cls(**texts, last=last, box=tuple(box) if box else None)  # type: ignore[arg-type]

    def line(self) -> str:
        """The row as one line of the file."""
        return json.dumps(asdict(self)) + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """All rows of a file; ValueError names the file, the line and the key.

    A region may not be there twice, nor an image have two last regions.
    """
    rows = []
    for number, line in numbered_lines(path):
        try:
            rows.append(Prediction.from_line(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no prediction")
    for (stem, region), count in Counter((row.stem, row.region) for row in rows).items():
        if count > 1:
            raise ValueError(f"{path}: {stem} {region} is there twice; a file holds one run")
    for stem, count in Counter(row.stem for row in rows if row.last).items():
        if count > 1:
            raise ValueError(f"{path}: {stem} has two regions with `last`")
    return rows
