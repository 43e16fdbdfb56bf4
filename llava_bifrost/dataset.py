"""Training data of the locator: LLaVA conversation records, read strictly, as questions with answers.

    [{"id", "image", "conversations": [{"from": "human", "value": "<image>\\nPlace ..."},
                                       {"from": "gpt", "value": "[x1, y1, x2, y2], d."}],
      "meta": {"request", "box01_xyxy", "depth", "far", "near", "anchors", ...}}]

Images lie in images/ beside the JSON file, or beside it. A record without `<image>` would train a model that
never sees the image, as the published builder's did; it is refused.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datasets.relations import Place
from ldm.files import read_json
from ldm.images import read_image
from ldm.mllm.chat import ChatExample
from llava_bifrost.language.answer import Location, parse_answer
from llava_bifrost.language.codec import Codec, frame_of
from llava_bifrost.language.instruction import InstructionError, Request, make_question, parse_instruction

IMAGE = "<image>"


@dataclass(frozen=True)
class LocatorRecord:
    """One example. question: without the image token. anchors: places by name, where the file has them."""

    id: str
    image: Path
    question: str
    location: Location
    request: Request | None = None
    anchors: Mapping[str, Place] = field(default_factory=dict)


def read_records(path: Path) -> list[LocatorRecord]:
    """All records of a file. ValueError names the record that is wrong, and an image that is missing."""
    values = read_json(path, list)
    if not values:
        raise ValueError(f"{path}: must hold a list of LLaVA conversation records")
    records = []
    for number, value in enumerate(values):
        name = str(value.get("id", number) if isinstance(value, Mapping) else number)
        try:
            try:
                question, answer = (turn["value"] for turn in value["conversations"][:2])
                image, meta = str(value["image"]), value.get("meta") or {}
            except (KeyError, TypeError, ValueError, AttributeError):
                raise ValueError("needs id, image and two conversations (human, gpt)") from None
            if question.count(IMAGE) != 1:
                raise ValueError(
                    f"its question holds {question.count(IMAGE)} {IMAGE}, it needs one, "
                    "or the model would learn to answer without looking"
                )
            folders = (path.parent / "images", path.parent)
            files = [folder / image for folder in folders if (folder / image).is_file()]
            if not files:
                raise ValueError(f"image {image} is neither in {folders[0]} nor in {folders[1]}")
            question = " ".join(question.replace(IMAGE, " ").split())
            if "box01_xyxy" in meta and "depth" in meta:  # the exact place, else what the answer says
                extent = meta.get("far"), meta.get("near")
                location = Location(tuple(meta["box01_xyxy"]), meta["depth"], *extent)
            else:
                location = parse_answer(answer)
            request, parts = None, meta.get("request")
            with suppress(InstructionError):
                request = parse_instruction(question) if parts is None else Request(
                    parts["target"], parts.get("relations", ()), bool(parts.get("replace"))
                )  # fmt: skip
            anchors = {key: Place(tuple(place["box01_xyxy"]), place["d"], place["far"], place["near"])
                       for key, place in meta.get("anchors", {}).items()}  # fmt: skip
            records.append(LocatorRecord(name, files[0], question, location, request, anchors))
        except ValueError as error:
            raise ValueError(f"{path}: record {name}: {error}") from error
    return records


class LocatorData(Dataset[ChatExample]):
    """Records as questions and answers in the words of a codec; images are read when they are needed."""

    def __init__(self, records: list[LocatorRecord], codec: Codec, processor: Any) -> None:
        self.records, self.codec, self.processor = records, codec, processor

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ChatExample:
        record = self.records[index]
        image = read_image(record.image)
        answer = self.codec.encode(record.location, frame_of(self.processor, image.size))
        return ChatExample(image.rgb_u8, question_of(record, self.codec), answer)


def question_of(record: LocatorRecord, codec: Codec) -> str:
    """The question in the codec's answer format; a question that is not understood stays as it is."""
    return record.question if record.request is None else make_question(record.request, codec.fmt)
