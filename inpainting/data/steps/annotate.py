"""Kosmos-2 descriptions with boxes of every image: annotations.json, resumable, in several processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.batches import run_batches, share
from inpainting.data.paintings import image_map, write_object
from inpainting.data.steps.describe import describe_paintings, open_model
from ldm.images import read_image
from ldm.journal import Journal, Progress
from ldm.mllm.load import Mllm

log = logging.getLogger(__name__)

STEP = "annotate-images"


def annotate_images(
    image_dir: Path,
    out: Path,
    *,
    model_id: str,
    batch_size: int,
    max_new_tokens: int,
    process: int = 0,
    processes: int = 1,
) -> bool:
    """Describe the images of one process; writes `out` when every process has finished, and says whether.

    What is done stands in OUT's folder as stamp_annotate-images_PofN.jsonl.
    """
    images = image_map(image_dir)
    names = sorted(images)
    inputs = {"model": model_id, "max_new_tokens": max_new_tokens}
    journal = Journal(journal_path(out, process, processes), inputs, keep=True)
    mllm: list[Mllm] = []

    def load(name: str) -> np.ndarray:
        return read_image(images[name]).rgb_u8

    def answer(batch_u8: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        if not mllm:
            mllm.append(open_model(model_id, "full"))
        return describe_paintings(mllm[0], batch_u8, max_new_tokens)

    run_batches(journal, share(names, process, processes), load, answer, batch_size)
    journals = [Progress(journal_path(out, index, processes)) for index in range(processes)]
    if not all(one.complete for one in journals):
        log.info("%s is written when the other processes have finished", out)
        return False
    entries = {name: entry for one in journals for name, entry in one.done.items()}
    write_object(out, {name: entries[name] for name in names if name in entries})
    return True


def journal_path(out: Path, process: int, processes: int) -> Path:
    return out.parent / f"stamp_{STEP}_{process}of{processes}.jsonl"
