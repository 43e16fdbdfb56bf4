"""The locator's training data: samples, and the LLaVA conversation records that are written and read.

    {"id": ..., "image": "000123_0.jpg", "conversations": [{"from": "human", "value": "<image>\\nPlace ..."},
     {"from": "gpt", "value": "[x1, y1, x2, y2], d."}], "meta": {...}}

Images lie in images/ beside the JSON file, or beside it. meta: request, box01_xyxy, depth, far, near, anchors
(name -> box01_xyxy, d, far, near), kind ("place" or "replace"), source, and facts of the source; files of
others need none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.relations import Place
from ldm.files import named_failure, read_json, same_file
from llava_bifrost.language.answer import answer_numbers, format_answer, parse_answer
from llava_bifrost.language.instruction import PHRASES, Request, make_question
from llava_bifrost.language.reading import parse_instruction

IMAGE = "<image>"
DIGITS = 5  # of the numbers in meta
AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # bins of the statistics, fraction of the image
DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """One question with its image and answer. image: file name; several samples may share an image."""

    id: str
    image: str
    rgb_u8: np.ndarray
    request: Request
    location: Place
    anchors: Mapping[str, Place]
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self, fmt: str, decimals: int) -> dict[str, Any]:
        location, request = self.location, self.request
        asked, answer = f"{IMAGE}\n{make_question(request, fmt)}", format_answer(location, fmt, decimals)
        return {
            "id": self.id,
            "image": self.image,
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}],
            "meta": {
                "request": asdict(request),
                "box01_xyxy": list(location.box01_xyxy),
                "depth": location.d,
                "far": metadata_number(location.far),
                "near": metadata_number(location.near),
                "anchors": {name: asdict(anchor) for name, anchor in self.anchors.items()},
                "kind": "replace" if request.replace else "place",
                "source": self.source,
                **self.facts,
            },
        }


@dataclass(frozen=True)
class Built:
    """What became of one image or scene: its samples, and reasons of what was dropped."""

    name: str
    samples: Sequence[Sample]
    dropped: Sequence[str] = ()


def metadata_number(value: float) -> float:
    return round(float(value), DIGITS)


def rounded_place(box01_xyxy: Sequence[float], d: float, far: float, near: float) -> Place:
    """A place in the numbers that the metadata holds, so that its readers decide the same relations."""
    x0, y0, x1, y1 = (metadata_number(value) for value in box01_xyxy)
    far, near = metadata_number(min(max(far, 0.0), 1.0)), metadata_number(min(max(near, 0.0), 1.0))
    return Place((x0, y0, x1, y1), min(max(metadata_number(d), far), near), far, near)


@dataclass(frozen=True)
class LocatorRecord:
    """One example. question: without the image token. anchors: places by name, where the file has them.

    format: of its answer, center or maxmedmin; the depth is that of the centre or the median.
    """

    id: str
    image: Path
    question: str
    location: Place
    format: str
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
        with named_failure(f"{path}: record {name}", ValueError):
            try:
                question, answer = (turn["value"] for turn in value["conversations"][:2])
                image, meta = str(value["image"]), value.get("meta") or {}
            except (KeyError, TypeError, ValueError, AttributeError):
                raise ValueError("needs id, image and two conversations (human, gpt)") from None
            if question.count(IMAGE) != 1:
                wrong = f"its question holds {question.count(IMAGE)} {IMAGE}, it needs one,"
                raise ValueError(f"{wrong} or the model would learn to answer without looking")
            folders = (path.parent / "images", path.parent)
            files = [file for folder in folders if (file := same_file(folder / image)).is_file()]
            if not files:
                raise ValueError(f"image {image} is neither in {folders[0]} nor in {folders[1]}")
            question = " ".join(question.replace(IMAGE, " ").split())
            if "box01_xyxy" in meta and "depth" in meta:  # the exact place, else what the answer says
                extent = meta.get("far"), meta.get("near")
                location = Place.of(tuple(meta["box01_xyxy"]), meta["depth"], *extent)
            else:
                location = parse_answer(answer)
            request, parts = None, meta.get("request")
            if parts is not None:
                request = Request(parts["target"], parts.get("relations", ()), bool(parts.get("replace")))
            else:
                with suppress(ValueError):  # a sentence of an unknown form is asked as it stands
                    request = parse_instruction(question)
            anchors = {key: Place(tuple(place["box01_xyxy"]), place["d"], place["far"], place["near"])
                       for key, place in meta.get("anchors", {}).items()}  # fmt: skip
            form = "center" if len(answer_numbers(answer)[1]) == 1 else "maxmedmin"
            records.append(LocatorRecord(name, files[0], question, location, form, request, anchors))
    return records


def statistics(records: Sequence[Mapping[str, Any]], dropped: Iterable[str], items: int) -> dict[str, Any]:
    """Counts of a data set. dropped: reasons, "short name: detail", by short name. items: looked at."""
    metas = [record["meta"] for record in records]
    clauses = [Request(**meta["request"]).clauses for meta in metas]
    phrases = [phrase for request in clauses for phrase, _ in request]
    boxes = [meta["box01_xyxy"] for meta in metas]
    return {
        "items": items,
        "images": len({record["image"] for record in records}),
        "samples": len(records),
        "kinds": _counted(Counter(meta["kind"] for meta in metas)),
        "relations per sample": _counted(Counter(str(len(request)) for request in clauses)),
        "relations": _counted(Counter(PHRASES[phrase] for phrase in phrases)),
        "phrases": _counted(Counter(phrases)),
        "targets": _counted(Counter(meta["request"]["target"] for meta in metas)),
        "area of the box up to": _binned([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes], AREAS),
        "depth up to": _binned([meta["depth"] for meta in metas], DEPTHS),
        "dropped": _counted(Counter(reason.partition(":")[0] for reason in dropped)),
    }


def _counted(counts: Counter[str]) -> dict[str, int]:
    """Most frequent first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _binned(values: Sequence[float], edges: Sequence[float]) -> dict[str, int]:
    """Counts up to each edge and above the one before."""
    counts = np.bincount(np.searchsorted(edges, np.minimum(values, edges[-1])), minlength=len(edges))
    return {f"{edge:g}": int(count) for edge, count in zip(edges, counts, strict=True)}
