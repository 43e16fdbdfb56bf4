"""LLaVA-NeXT captions of every object crop: resumable, in several processes, merged at the end.

    OUTPUT/captions_0of1.jsonl       what process 0 of 1 has captioned so far
    OUTPUT/backup_0_final.json       all of its captions, in the published form, when it has finished
    OUTPUT/llava.json                those of all processes, when the last of them has finished

Captions in backup_*.json of the published command are taken over instead of made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.batches import run_batches, share
from inpainting.data.paintings import ANNOTATIONS, RAW_CAPTIONS, entity_folders, read_entities, write_object
from inpainting.data.steps.captions import STEPS, damaged, read_captions
from inpainting.data.steps.describe import caption_crops, open_model
from ldm.images import read_image
from ldm.journal import Journal, Progress
from ldm.mllm.load import Mllm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioning:
    """How captions are made."""

    model_id: str
    batch_size: int
    max_new_tokens: int = 40
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class Crop:
    """One object of one image."""

    rgb_u8: np.ndarray  # (h, w, 3)
    concept: str


def caption_masks(
    entities_dir: Path, output_dir: Path, how: Captioning, process: int, processes: int, resume: bool = True
) -> Path:
    """Caption the images of one process; returns its backup_P_final.json.

    Images are sorted, and process p takes every n-th from the p-th on, as published.
    """
    stems = share(entity_folders(entities_dir), process, processes)
    journal = open_journal(output_dir, how, process, processes, resume)
    concepts = read_concepts(entities_dir, stems, journal)
    forget_changed(journal, concepts)
    if resume and not journal.done:
        take_over(journal, output_dir, concepts)
    made = [key for key in concepts if "from" not in journal.done.get(key, {})]
    mllm: list[Mllm] = []

    def load(key: str) -> Crop:
        return Crop(read_image(entities_dir / f"{key}.png").rgb_u8, concepts[key])

    def answer(crops: Sequence[Crop]) -> list[dict[str, Any]]:
        if not mllm:  # nothing is loaded when nothing is left to do
            mllm.append(open_model(how.model_id, how.precision))
        shown, named = [one.rgb_u8 for one in crops], [one.concept for one in crops]
        texts = caption_crops(mllm[0], shown, named, how.max_new_tokens)
        return [{"concept": one.concept, "caption": text} for one, text in zip(crops, texts, strict=True)]

    run_batches(journal, made, load, answer, how.batch_size)
    steps = -(-len(made) // how.batch_size)
    final = output_dir / f"backup_{process}_final.json"
    write_object(final, {**captions_of(journal, concepts), STEPS: steps})
    merge_finished(output_dir, entities_dir, processes)
    return final


def open_journal(
    output_dir: Path, how: Captioning, process: int, processes: int, resume: bool = True
) -> Journal:
    """The journal of one process; one that was begun with another model is refused."""
    inputs = {"model": how.model_id, "max_new_tokens": how.max_new_tokens}
    path = journal_path(output_dir, process, processes)
    if not resume:
        path.unlink(missing_ok=True)
    return Journal(path, inputs, keep=True)


def journal_path(output_dir: Path, process: int, processes: int) -> Path:
    return output_dir / f"captions_{process}of{processes}.jsonl"


def read_concepts(entities_dir: Path, stems: Sequence[str], journal: Journal | None = None) -> dict[str, str]:
    """{"stem/mask_j": concept}; images whose annotation is damaged are left out."""
    found: dict[str, str] = {}
    for stem in stems:
        try:
            entities = read_entities(entities_dir / stem / ANNOTATIONS)
        except ValueError as error:
            if journal is not None:
                journal.leave_out(stem, str(error))
            continue
        found |= {f"{stem}/{one.name}": one.concept for one in entities}
        if journal is not None:
            journal.left_out.pop(stem, None)
    return found


def forget_changed(journal: Journal, concepts: dict[str, str]) -> None:
    """Captions of objects that are called otherwise now are made again."""
    for key, entry in list(journal.done.items()):
        if concepts.get(key) != entry.get("concept"):
            del journal.done[key]


def take_over(journal: Journal, output_dir: Path, concepts: dict[str, str]) -> None:
    """Record what earlier runs made: backups, and journals of another number of processes.

    Captions without their beginning are made again.
    """
    others = [
        Progress(path) for path in sorted(output_dir.glob("captions_*of*.jsonl")) if path != journal.path
    ]
    known = [one.path for one in others if one.inputs == journal.inputs]
    for path in [*sorted(output_dir.glob("backup_*.json")), *known]:
        taken: dict[str, dict[str, Any]] = {}
        found = read_captions(path) if path.suffix == ".json" else captions_of(Progress(path))
        for stem, captions in found.items():
            for name, text in captions.items() if isinstance(captions, dict) else ():
                key = f"{stem}/{name}"
                if key in concepts and isinstance(text, str) and not damaged(text):
                    taken[key] = {"concept": concepts[key], "caption": text, "from": path.name}
        if taken:
            log.info("%d captions taken over from %s", len(taken), path)
            journal.add_all(taken)


def captions_of(journal: Progress, keys: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """{stem: {mask: caption}} in the order of `keys`, by default as they were made."""
    found: dict[str, dict[str, str]] = {}
    for key in journal.done if keys is None else keys:
        if key in journal.done:
            stem, _, name = key.rpartition("/")
            found.setdefault(stem, {})[name] = journal.done[key]["caption"]
    return found


def merge_finished(output_dir: Path, entities_dir: Path, processes: int) -> None:
    """Write llava.json when every process has finished."""
    journals = [Progress(journal_path(output_dir, index, processes)) for index in range(processes)]
    if not all(one.complete for one in journals):
        return
    merged: dict[str, dict[str, str]] = {}
    stems = entity_folders(entities_dir)
    for index, journal in enumerate(journals):
        merged |= captions_of(journal, read_concepts(entities_dir, share(stems, index, processes)))
    write_object(output_dir / RAW_CAPTIONS, dict(sorted(merged.items())))
    log.info("captions of all processes: %s", output_dir / RAW_CAPTIONS)
