"""Language models that describe paintings (Kosmos-2) and their objects (LLaVA-NeXT): images in, texts out.

Both are loaded by `ldm.mllm.load` from a folder, or by their hub name from the local cache or the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpainting.prompts import CAPTION_START, KOSMOS_PROMPT, caption_prompt
from ldm.mllm.load import Mllm, four_bit_works, load_four_bit, load_mllm
from ldm.registry.models import model_folder

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "4bit", "full")
FULL_STOP = "."


def open_model(model_id: str, precision: str = "auto", device: str = "auto", dtype: str = "auto") -> Mllm:
    """A model by folder or hub name.

    precision: 4bit (as published: nf4, fp16 arithmetic; needs CUDA and bitsandbytes), full, or auto: 4bit
    where it works. device, dtype: as in `load_mllm`; with 4 bits they are chosen here.
    """
    folder = model_folder(model_id)
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
        text=[caption_prompt(concept) for concept in concepts],
        images=[Image.fromarray(crop) for crop in crops_u8],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        written = mllm.model.generate(
            **_on(mllm, inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stop_strings=[FULL_STOP],
            tokenizer=processor.tokenizer,
        )
    asked = inputs["input_ids"].shape[1]
    return [CAPTION_START + continuation(processor.tokenizer, row, asked) for row in written.cpu()]


def continuation(tokenizer: Any, ids: torch.Tensor, asked: int) -> str:
    """What a model wrote after the first `asked` tokens of (t,), with the space before it."""

    def text_of(some: torch.Tensor) -> str:
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    whole, question = text_of(ids), text_of(ids[:asked])
    if whole.startswith(question):
        return whole[len(question) :].rstrip()
    # The tokenizer decodes the joint differently from its parts.
    return " " + text_of(ids[asked:]).strip()


def describe_paintings(
    mllm: Mllm, images_u8: Sequence[np.ndarray], max_new_tokens: int
) -> list[dict[str, Any]]:
    """The entry of annotations.json of each image (h, w, 3) uint8: description, phrases and their boxes."""
    processor = mllm.processor
    images = [Image.fromarray(image) for image in images_u8]
    inputs = processor(text=[KOSMOS_PROMPT] * len(images), images=images, return_tensors="pt")
    with torch.inference_mode():
        written = mllm.model.generate(**_on(mllm, inputs), max_new_tokens=max_new_tokens, do_sample=False)
    texts = processor.batch_decode(written, skip_special_tokens=True)
    return [grounded_entry(*processor.post_process_generation(text)) for text in texts]


def grounded_entry(description: str, found: Sequence[Any]) -> dict[str, Any]:
    """Kosmos-2's (phrase, (start, end), boxes) as one entry; the boxes of a repeated phrase are united."""
    entities: dict[str, Any] = {}
    for phrase, (start, end), boxes in found:
        entity = entities.setdefault(phrase, {"startend": [start, end], "bboxes": []})
        entity["bboxes"] += [list(box) for box in boxes if list(box) not in entity["bboxes"]]
    return {"description": description, "entities": entities}


def _on(mllm: Mllm, inputs: Any) -> dict[str, Any]:
    """The inputs on the model's device; images in the precision of its weights."""
    kind = next(p.dtype for p in mllm.model.parameters() if p.is_floating_point())
    return {
        name: value.to(mllm.device, kind if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
