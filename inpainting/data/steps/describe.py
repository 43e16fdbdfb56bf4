"""Vision-language models that describe paintings (Kosmos-2) and their objects (LLaVA-NeXT).

Both are loaded by `ldm.mllm.load` from a folder, or by their hub name from the local cache or the hub.
`annotate_images` writes annotations.json, resumable, in several processes; its progress is recorded in
stamp_annotate-images_PofN.jsonl beside that file.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpainting.data.batches import ProcessSettings, run_batches, shard_paths
from inpainting.data.paintings import image_map, write_object
from inpainting.prompts import CAPTION_PROMPT, CAPTION_START, KOSMOS_PROMPT
from ldm.images import read_image
from ldm.journal import Journal, JournalReader
from ldm.mllm.load import Mllm, four_bit_works, load_four_bit, load_mllm
from ldm.registry.models import local_or_hub_folder
from ldm.settings.config import setting

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "4bit", "full")
FULL_STOP = "."
STEP = "annotate-images"


@dataclass(frozen=True)
class AnnotateSettings(ProcessSettings):
    """Images -> descriptions with boxes by Kosmos-2."""

    image_dir: Path = setting(help="folder of images, split or not")
    out: Path = setting(Path("data/annotations.json"), help="JSON file to write")
    model_id: str = setting("microsoft/kosmos-2-patch14-224", help="Kosmos-2, folder or hub name")
    batch_size: int = setting(8, low=1, help="images at once")
    max_new_tokens: int = setting(128, low=1, help="longest description")


def open_model(model_id: str, precision: str = "auto", device: str = "auto", dtype: str = "auto") -> Mllm:
    """A model by folder or hub name.

    precision: 4bit (as published: nf4, fp16 arithmetic; needs CUDA and bitsandbytes), full, or auto: 4bit
    where it works. device, dtype: as in `load_mllm`; with 4 bits they are chosen here.
    """
    folder = local_or_hub_folder(model_id)
    able = four_bit_works()
    if precision == "4bit" and not able:
        raise ValueError("precision 4bit needs a CUDA device and bitsandbytes (requirements-extras.txt)")
    if precision == "full" or not able:
        return load_mllm(folder, device, dtype)
    return load_four_bit(folder, torch.float16)


def caption_crops(
    mllm: Mllm, crops_u8: Sequence[np.ndarray], concepts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """One raw sentence, "The image shows ...", per crop (h, w, 3) uint8 and the concept that it shows."""
    processor = mllm.processor
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[CAPTION_PROMPT.format(concept=concept) for concept in concepts],
        images=[Image.fromarray(crop) for crop in crops_u8],
        padding=True,
        return_tensors="pt",
    ).to(mllm.device, mllm.model.dtype)
    with torch.inference_mode():
        written = mllm.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stop_strings=[FULL_STOP],
            tokenizer=processor.tokenizer,
        )
    length = inputs["input_ids"].shape[1]
    return [CAPTION_START + continuation(processor.tokenizer, row, length) for row in written.cpu()]


def continuation(tokenizer: Any, ids: torch.Tensor, length: int) -> str:
    """What a model wrote after the first `length` tokens of (t,), with the space before it."""

    def text_of(part: torch.Tensor) -> str:
        return tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    whole, question = text_of(ids), text_of(ids[:length])
    if whole.startswith(question):
        return whole[len(question) :].rstrip()
    # The tokenizer decodes the joint differently from its parts.
    return " " + text_of(ids[length:]).strip()


def describe_paintings(
    mllm: Mllm, images_u8: Sequence[np.ndarray], max_new_tokens: int
) -> list[dict[str, Any]]:
    """The entry of annotations.json of each image (h, w, 3) uint8: description, phrases and their boxes.

    Kosmos-2 gives (phrase, (start, end), boxes); the boxes of a repeated phrase are united.
    """
    processor = mllm.processor
    images = [Image.fromarray(image) for image in images_u8]
    inputs = processor(text=[KOSMOS_PROMPT] * len(images), images=images, return_tensors="pt")
    inputs = inputs.to(mllm.device, mllm.model.dtype)
    with torch.inference_mode():
        written = mllm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    entries = []
    for text in processor.batch_decode(written, skip_special_tokens=True):
        description, phrases = processor.post_process_generation(text)
        entities: dict[str, Any] = {}
        for phrase, (start, end), boxes in phrases:
            entity = entities.setdefault(phrase, {"startend": [start, end], "bboxes": []})
            entity["bboxes"] += [list(box) for box in boxes if list(box) not in entity["bboxes"]]
        entries.append({"description": description, "entities": entities})
    return entries


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
