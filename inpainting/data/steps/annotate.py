"""Kosmos-2 descriptions with boxes of every image: annotations.json, resumable, in several processes.

Progress is recorded in stamp_annotate-images_PofN.jsonl beside annotations.json, which the last process
writes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.batches import ProcessSettings, run_batches, shard_paths
from inpainting.data.paintings import image_map, write_object
from inpainting.data.steps.describe import describe_paintings, open_model
from ldm.images import read_image
from ldm.journal import Journal, JournalReader
from ldm.settings.config import setting

log = logging.getLogger(__name__)

STEP = "annotate-images"


@dataclass(frozen=True)
class AnnotateSettings(ProcessSettings):
    """Images -> descriptions with boxes by Kosmos-2."""

    image_dir: Path = setting(help="folder of images, split or not")
    out: Path = setting(Path("data/annotations.json"), help="JSON file to write")
    model_id: str = setting("microsoft/kosmos-2-patch14-224", help="Kosmos-2, folder or hub name")
    batch_size: int = setting(8, low=1, help="images at once")
    max_new_tokens: int = setting(128, low=1, help="longest description")


def annotate_images(settings: AnnotateSettings) -> bool:
    """Describe every image and box what is described, with Kosmos-2; run again to continue."""
    out, (index, count) = settings.out, settings.index_of_count
    images = image_map(settings.image_dir)
    names = sorted(images)
    inputs = {"model": settings.model_id, "max_new_tokens": settings.max_new_tokens}
    paths = shard_paths(out.parent, f"stamp_{STEP}", count)
    journal = Journal(paths[index], inputs, keep=True)
    model = functools.cache(lambda: open_model(settings.model_id, "full"))

    def answer(images_u8: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        return describe_paintings(model(), images_u8, settings.max_new_tokens)

    run_batches(
        journal,
        names[index::count],
        lambda name: read_image(images[name]).rgb_u8,
        answer,
        settings.batch_size,
    )
    journals = [JournalReader(path) for path in paths]
    if not all(progress.complete for progress in journals):
        log.info("%s is written when the other processes have finished", out)
        return False
    entries = {name: entry for progress in journals for name, entry in progress.done.items()}
    write_object(out, {name: entries[name] for name in names if name in entries})
    return True
