"""LLaVA-NeXT captions of every object crop: resumable, in several processes, merged at the end.

    OUTPUT/captions_0of1.jsonl       what process 0 of 1 has captioned so far
    OUTPUT/backup_0_final.json       all of its captions, in the published form, when it has finished
    OUTPUT/llava.json                those of all processes, when the last of them has finished

Captions in backup_*.json of the published command are taken over instead of made again.
"""

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.batches import ProcessSettings, run_batches, shard_paths
from inpainting.data.paintings import ANNOTATIONS, RAW_CAPTIONS, entity_folders, read_entities, write_object
from inpainting.data.steps.captions import STEPS, damaged, read_captions
from inpainting.data.steps.describe import PRECISIONS, caption_crops, open_model
from ldm.images import read_image
from ldm.journal import Journal, JournalReader
from ldm.settings.config import setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionSettings(ProcessSettings):
    """Object crops -> raw captions by LLaVA-NeXT."""

    entities_dir: Path = setting(help="folder of entities")
    model_id: str = setting(help="LLaVA-NeXT, folder or hub name")
    batch_size: int = setting(help="crops at once", low=1)
    max_new_tokens: int = setting(40, low=1, help="longest caption")
    output_dir: Path = setting(Path("."), help="folder of the journal, backup_P_final.json and llava.json")
    precision: str = setting("auto", choices=PRECISIONS, help="of the model's weights")
    resume: bool = setting(True, help="continue earlier work, also backups of the published command")


def caption_masks(settings: CaptionSettings) -> Path:
    """Caption every crop with LLaVA-NeXT; run again to continue."""
    entities_dir, output_dir = settings.entities_dir, settings.output_dir
    index, count = settings.index_of_count
    paths = shard_paths(output_dir, "captions", count)
    if not settings.resume:
        paths[index].unlink(missing_ok=True)
    inputs = {"model": settings.model_id, "max_new_tokens": settings.max_new_tokens}
    journal = Journal(paths[index], inputs, keep=True)
    stems = entity_folders(entities_dir)  # sorted; process p takes every n-th from the p-th on, as published
    concepts, reasons = read_concepts(entities_dir, stems[index::count])
    for stem in stems[index::count]:
        if stem in reasons:
            journal.leave_out(stem, reasons[stem])
        else:
            journal.left_out.pop(stem, None)
    for key, entry in list(journal.done.items()):
        if concepts.get(key) != entry.get("concept"):  # the object has another name now
            del journal.done[key]
    if settings.resume and not journal.done:
        take_over(journal, output_dir, concepts)
    to_caption = [key for key in concepts if "from" not in journal.done.get(key, {})]
    model = functools.cache(lambda: open_model(settings.model_id, settings.precision))

    def load(key: str) -> tuple[np.ndarray, str]:
        return read_image(entities_dir / f"{key}.png").rgb_u8, concepts[key]

    def answer(crops: Sequence[tuple[np.ndarray, str]]) -> list[dict[str, Any]]:
        images_u8, named = [crop_u8 for crop_u8, _ in crops], [concept for _, concept in crops]
        texts = caption_crops(model(), images_u8, named, settings.max_new_tokens)
        return [{"concept": name, "caption": text} for name, text in zip(named, texts, strict=True)]

    run_batches(journal, to_caption, load, answer, settings.batch_size)
    steps = -(-len(to_caption) // settings.batch_size)
    final = output_dir / f"backup_{index}_final.json"
    write_object(final, {**captions_of(journal, concepts), STEPS: steps})
    journals = [JournalReader(path) for path in paths]
    if all(progress.complete for progress in journals):
        merged: dict[str, dict[str, str]] = {}
        for number, progress in enumerate(journals):
            merged |= captions_of(progress, read_concepts(entities_dir, stems[number::count])[0])
        write_object(output_dir / RAW_CAPTIONS, dict(sorted(merged.items())))
        log.info("captions of all processes: %s", output_dir / RAW_CAPTIONS)
    return final


def read_concepts(entities_dir: Path, stems: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """{"stem/mask_j": concept}, and {stem: reason} of the images whose annotation is damaged."""
    concepts: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for stem in stems:
        try:
            entities = read_entities(entities_dir / stem / ANNOTATIONS)
        except ValueError as error:
            reasons[stem] = str(error)
            continue
        concepts |= {f"{stem}/{entity.name}": entity.concept for entity in entities}
    return concepts, reasons


def take_over(journal: Journal, output_dir: Path, concepts: dict[str, str]) -> None:
    """Record what earlier runs made: backups, and journals of another number of processes.

    Captions without their beginning are made again.
    """
    others = [JournalReader(path) for path in sorted(output_dir.glob("captions_*of*.jsonl"))]
    same = [other for other in others if other.path != journal.path and other.inputs == journal.inputs]
    sources = [(path, read_captions(path)) for path in sorted(output_dir.glob("backup_*.json"))]
    for path, captions_by_stem in [*sources, *((other.path, captions_of(other)) for other in same)]:
        taken: dict[str, dict[str, Any]] = {}
        for stem, captions in captions_by_stem.items():
            for name, text in captions.items() if isinstance(captions, dict) else ():
                key = f"{stem}/{name}"
                if key in concepts and isinstance(text, str) and not damaged(text):
                    taken[key] = {"concept": concepts[key], "caption": text, "from": path.name}
        if taken:
            log.info("%d captions taken over from %s", len(taken), path)
            journal.add_all(taken)


def captions_of(journal: JournalReader, keys: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """{stem: {mask: caption}} in the order of `keys`, by default as they were made."""
    captions: dict[str, dict[str, str]] = {}
    for key in journal.done if keys is None else keys:
        if key in journal.done:
            stem, _, name = key.rpartition("/")
            captions.setdefault(stem, {})[name] = journal.done[key]["caption"]
    return captions
