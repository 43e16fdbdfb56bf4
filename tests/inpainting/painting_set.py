"""Eight synthetic paintings in the published formats, and tools to compare folders and to kill a step."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# name: (width, height), {phrase: boxes}. Boxes below 1 % or above 65 % of the image are dropped.
PAINTINGS: dict[str, tuple[tuple[int, int], dict[str, list[list[float]]]]] = {
    "anna-maria_bridge": (
        (90, 60),
        {
            "A stone bridge": [[0.1, 0.4, 0.9, 0.8]],
            "two boats": [[0.0, 0.7, 0.2, 0.95], [0.6, 0.7, 0.9, 1.0]],
        },
    ),
    "bo_harbour.no-2": (
        (60, 90),
        {"boats": [[0.1, 0.1, 0.3, 0.3]] * 2 + [[0.5, 0.5, 0.8, 0.9]], "a bird": [[0.9, 0.9, 0.95, 0.95]]},
    ),
    "carl_portrait": ((64, 64), {"a man in a black hat": [[0.2, 0.1, 0.8, 0.9]]}),
    "dora_still-life": (
        (80, 64),
        {
            "a bowl of fruit": [[0.3, 0.3, 0.7, 0.7]],
            "a blue cloth": [[0.0, 0.6, 1.0, 1.0]],
            "the wall": [[0.0, 0.0, 1.0, 0.99]],
        },
    ),
    "emil_wide-river": ((160, 50), {"trees": [[0.0, 0.1, 0.25, 0.9]], "the river": [[0.3, 0.5, 0.75, 1.0]]}),
    "fritz_empty": ((70, 70), {"the painting": [[0.0, 0.0, 1.0, 1.0]], "a dot": [[0.5, 0.5, 0.52, 0.52]]}),
    "gina_dancers": (
        (100, 75),
        {
            "A woman dancing": [[0.1, 0.2, 0.35, 0.9]],
            "a man's face": [[0.5, 0.1, 0.7, 0.4]],
            "her dress": [[0.1, 0.5, 0.4, 0.95]],
        },
    ),
    "hugo_village": (
        (75, 100),
        {"houses": [[0.1, 0.5, 0.3, 0.8], [0.4, 0.5, 0.6, 0.8], [0.7, 0.5, 0.9, 0.8]]},
    ),
}
SPLIT = {"anna-maria_bridge": "train", "bo_harbour.no-2": "val", "carl_portrait": "test"}
UNANNOTATED = "fritz_empty"
BEGINS = "The image shows"
# Regions that each image keeps.
REGIONS = {"anna-maria_bridge": 2, "bo_harbour.no-2": 1, "carl_portrait": 1, "dora_still-life": 2}
REGIONS |= {"emil_wide-river": 2, "gina_dancers": 3, "hugo_village": 1}


@dataclass(frozen=True)
class PaintingSet:
    """The published layout below one folder."""

    root: Path

    @property
    def annotations(self) -> Path:
        return self.root / "data/annotations.json"

    @property
    def captions(self) -> Path:
        return self.root / "data/llava.json"

    @property
    def table(self) -> Path:
        return self.root / "data/wikiart_images.csv"

    @property
    def out(self) -> Path:
        return self.root / "data/mm_inp_dataset"

    @property
    def images(self) -> Path:
        return self.out / "images"

    def edit(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file."""
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


def write_set(root: Path) -> PaintingSet:
    """Images, annotations.json, llava.json and wikiart_images.csv."""
    made = PaintingSet(root)
    made.images.mkdir(parents=True)
    rng = np.random.default_rng(7)
    annotations, captions, rows = {}, {}, []
    for stem, (size, entities) in PAINTINGS.items():
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(made.images / f"{stem}.jpg")
        described = {phrase: {"startend": [0, 1], "bboxes": boxes} for phrase, boxes in entities.items()}
        text = "Question: What are the details of this painting? Answer: It shows " + ", ".join(entities)
        annotations[f"{stem}.jpg"] = {"description": text, "entities": described}
        if stem in REGIONS:
            captions[stem] = {f"mask_{j}": f"{BEGINS} Thing {j} of {stem}." for j in range(REGIONS[stem])}
        split = SPLIT.get(stem, "train" if stem in REGIONS else "")
        rows.append([f"{stem}.jpg", f"http://127.0.0.1:9/{stem}.jpg", "Large", split])
    made.annotations.write_text(json.dumps(annotations))
    made.captions.write_text(json.dumps(captions))
    with made.table.open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "url", "modifier", "split"], *rows])
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Path in the folder -> contents, of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(step: Callable[[], Any], place: str, count: int) -> None:
    """Run a step in a child process that is killed by SIGKILL in the middle.

    place "append": half of journal record number `count` is written; "replace": before file number `count`
    gets its name.
    """
    child = os.fork()
    if not child:
        signal.alarm(120)  # a child that hangs ends, by another signal
        arm(place, count)
        step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the step ended before it was killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def arm(place: str, count: int) -> None:
    """From here on this process kills itself at the given moment."""
    from ldm.journal import Journal

    seen = [0]
    append, replace = Journal._append, os.replace

    def dying_append(self: Journal, *entries: Any) -> None:
        seen[0] += 1
        if seen[0] == count:
            with self.path.open("ab") as file:
                file.write(b'{"item": "half of a li')
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, *entries)

    def dying_replace(source: Any, target: Any) -> None:
        seen[0] += 1
        if seen[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    if place == "append":
        Journal._append = dying_append  # type: ignore[method-assign]
    else:
        os.replace = dying_replace  # type: ignore[assignment]
