"""Training data of the locator: LLaVA conversation records, read strictly, as questions with answers.

    [{"id", "image", "conversations": [{"from": "human", "value": "<image>\\nPlace ..."},
                                       {"from": "gpt", "value": "[x1, y1, x2, y2], d."}],
      "meta": {"request", "box01_xyxy", "depth", "far", "near", "anchors", ...}}]

Images lie in images/ beside the JSON file, or beside it. A record without `<image>` would train a model that
never sees, as the published builder's did; it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datasets.relations import Place
from ldm.images import read_image
from ldm.mllm.chat import ChatExample
from llava_bifrost.language.answer import (
    Location,
    Request,
    make_question,
    parse_answer,
    parse_instruction,
)
from llava_bifrost.language.codec import Codec, frame_of

IMAGE = "<image>"


@dataclass(frozen=True)
class Record:
    """One example. question: without the image token. anchors: places by name, where the file has them."""

    id: str
    image: Path
    question: str
    location: Location
    request: Request | None = None
    anchors: Mapping[str, Place] = field(default_factory=dict)


def read_records(path: Path) -> list[Record]:
    """All records of a file. ValueError names the record that is wrong, and an image that is missing."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: not a readable JSON file ({reason})") from None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path}: must hold a list of LLaVA conversation records")
    return [_record(value, number, path) for number, value in enumerate(values)]


def _record(value: Any, number: int, path: Path) -> Record:
    name = value.get("id", number) if isinstance(value, Mapping) else number
    where = f"{path}: record {name}"
    try:
        asked, said = (turn["value"] for turn in value["conversations"][:2])
        image, meta = str(value["image"]), value.get("meta") or {}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{where}: needs id, image and two conversations (human, gpt)") from None
    if asked.count(IMAGE) != 1:
        raise ValueError(
            f"{where}: its question holds {asked.count(IMAGE)} {IMAGE}, it needs one, "
            "or the model would learn to answer without looking"
        )
    question = " ".join(asked.replace(IMAGE, " ").split())
    places = {key: Place(tuple(item["box01_xyxy"]), item["d"], item["far"], item["near"])
              for key, item in meta.get("anchors", {}).items()}  # fmt: skip
    try:
        return Record(
            str(name),
            _image(path.parent, image),
            question,
            _location(said, meta),
            _request(question, meta),
            places,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _image(folder: Path, name: str) -> Path:
    found = next((file for file in (folder / "images" / name, folder / name) if file.is_file()), None)
    if found is None:
        raise ValueError(f"image {name} is neither in {folder / 'images'} nor in {folder}")
    return found


def _location(said: str, meta: Mapping[str, Any]) -> Location:
    """The exact place where the record has it, else what its answer says."""
    if "box01_xyxy" not in meta or "depth" not in meta:
        return parse_answer(said)
    return Location(tuple(meta["box01_xyxy"]), meta["depth"], meta.get("far"), meta.get("near"))


def _request(question: str, meta: Mapping[str, Any]) -> Request | None:
    if "request" in meta:
        asked = meta["request"]
        pairs = tuple((phrase, name) for phrase, name in asked.get("relations", ()))
        return Request(asked["target"], pairs, bool(asked.get("replace")))
    try:
        return parse_instruction(question)
    except ValueError:
        return None


class LocatorData(Dataset[ChatExample]):
    """Records as questions and answers in the words of a codec; images are read when they are needed."""

    def __init__(self, records: list[Record], codec: Codec, processor: Any) -> None:
        self.records, self.codec, self.processor = records, codec, processor

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ChatExample:
        record = self.records[index]
        image_u8 = read_image(record.image).rgb_u8
        frame = frame_of(self.processor, (image_u8.shape[0], image_u8.shape[1]))
        return ChatExample(
            image_u8, question_of(record, self.codec), self.codec.encode(record.location, frame)
        )


def question_of(record: Record, codec: Codec) -> str:
    """The question in the codec's answer format; a question that is not understood stays as it is."""
    return record.question if record.request is None else make_question(record.request, codec.fmt)
