"""Vision-language models that describe paintings (Kosmos-2) and their objects (LLaVA-NeXT).

Both steps are resumable, and several processes may divide the work; the last of them merges the results.

    stamp_annotate-images_0of1.jsonl    beside annotations.json: what process 0 of 1 has described so far
    OUTPUT/captions_0of1.jsonl          what process 0 of 1 has captioned so far
    OUTPUT/backup_0_final.json          all of its captions, in the published form, at its end
    OUTPUT/llava.json                   captions of all processes
"""

import contextlib
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpainting.data import paintings
from inpainting.data.batches import AnnotateSettings, Answer, CaptionSettings, Load, run_batches
from inpainting.data.steps.texts import STEPS, damaged, read_captions
from inpainting.prompts import CAPTION_PROMPT, CAPTION_START, KOSMOS_PROMPT
from ldm.files import hash_model
from ldm.images import read_image
from ldm.journal import Journal, JournalReader
from ldm.locks import alone
from ldm.mllm.constrain import FiniteScores
from ldm.mllm.model import Mllm, four_bit_works, load_mllm
from ldm.registry.models import local_or_hub_folder
from ldm.result import write_result

log = logging.getLogger(__name__)

STEP = "annotate-images"


def open_model(model_id: str, precision: str = "auto", device: str = "auto", dtype: str = "auto") -> Mllm:
    """A model by folder or hub name.

    precision: 4bit (as published: nf4; needs CUDA and bitsandbytes), full, or auto: 4bit where it works.
    device, dtype: as in `load_mllm`
    """
    smaller = precision == "4bit" or (precision == "auto" and four_bit_works())
    return load_mllm(local_or_hub_folder(model_id), device, dtype, "4bit" if smaller else "")


def caption_crops(mllm: Mllm, crops_u8: Sequence[np.ndarray], concepts: list[str], longest: int) -> list[str]:
    """One raw sentence, "The image shows ...", per crop (h, w, 3) uint8 and the concept that it shows."""
    processor = mllm.processor
    processor.tokenizer.padding_side = "left"
    texts = [CAPTION_PROMPT.format(concept=concept) for concept in concepts]
    images = [Image.fromarray(crop) for crop in crops_u8]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    inputs = inputs.to(mllm.device, mllm.model.dtype)
    rules = {"logits_processor": [FiniteScores()], "stop_strings": ["."], "tokenizer": processor.tokenizer}
    with torch.inference_mode():
        written = mllm.model.generate(**inputs, **rules, max_new_tokens=longest, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return [CAPTION_START + continuation(processor.tokenizer, row, length) for row in written.cpu()]


def continuation(tokenizer: Any, ids: torch.Tensor, length: int) -> str:
    """What a model wrote after the first `length` tokens of (t,), with the space before it."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text_of = functools.partial(tokenizer.decode, **options)
    whole, question = text_of(ids), text_of(ids[:length])
    if whole.startswith(question):
        return whole[len(question) :].rstrip()
    # The tokenizer decodes the joint differently from its parts.
    return " " + text_of(ids[length:]).strip()


def describe_paintings(mllm: Mllm, images_u8: Sequence[np.ndarray], longest: int) -> list[dict[str, Any]]:
    """The entry of annotations.json of each image (h, w, 3) uint8: description, phrases and their boxes.

    The boxes of a repeated phrase are united; objects without a phrase, whose span is empty, are dropped.
    """
    processor = mllm.processor
    images = [Image.fromarray(image) for image in images_u8]
    inputs = processor(text=[KOSMOS_PROMPT] * len(images), images=images, return_tensors="pt")
    inputs = inputs.to(mllm.device, mllm.model.dtype)
    with torch.inference_mode():
        rules = {"logits_processor": [FiniteScores()], "do_sample": False}
        written = mllm.model.generate(**inputs, **rules, max_new_tokens=longest)
    entries = []
    for text in processor.batch_decode(written, skip_special_tokens=True):
        description, phrases = processor.post_process_generation(text)
        entities: dict[str, Any] = {}
        for phrase, (start, end), boxes in phrases:
            if start >= end:  # an object without a phrase
                continue
            entity = entities.setdefault(phrase, {"startend": [start, end], "bboxes": []})
            entity["bboxes"] += [list(box) for box in boxes if list(box) not in entity["bboxes"]]
        entries.append({"description": description, "entities": entities})
    return entries


def journal_inputs(settings: AnnotateSettings | CaptionSettings, path: Path) -> dict[str, Any]:
    """What answers depend on; without the weights where the journal at `path` is of an earlier version."""
    inputs = {"model": settings.model_id, "max_new_tokens": settings.max_new_tokens}
    inputs |= {"dtype": settings.dtype} if settings.dtype != "auto" else {}  # earlier journals go on
    if not Path(settings.model_id).is_dir() or "weights" not in (JournalReader(path).inputs or ["weights"]):
        return inputs
    return {**inputs, "weights": hash_model(Path(settings.model_id))}


def journal_paths(settings: AnnotateSettings | CaptionSettings) -> tuple[Path, list[Path]]:
    """The journal of this process, and those of all."""
    index, count = settings.index_of_count
    if isinstance(settings, AnnotateSettings):
        start = settings.out.parent / f"stamp_{STEP}"
    else:
        start = settings.output_dir / "captions"
    paths = [start.with_name(f"{start.name}_{number}of{count}.jsonl") for number in range(count)]
    return paths[index], paths


@functools.partial(alone, path_of=lambda settings: journal_paths(settings)[0], inside=False)
def annotate_images(settings: AnnotateSettings) -> Path | None:
    """Describe every image and box what is described, with Kosmos-2; run again to continue."""
    out, (index, count) = settings.out, settings.index_of_count
    images = paintings.image_map(settings.image_dir)
    names = sorted(images)
    path, paths = journal_paths(settings)
    journal = Journal(path, journal_inputs(settings, path), keep=True)

    def make() -> tuple[Load, Answer]:
        model = functools.cache(lambda: open_model(settings.model_id, "full", dtype=settings.dtype))
        return (
            lambda name: read_image(images[name]).rgb_u8,
            lambda images_u8: describe_paintings(model(), images_u8, settings.max_new_tokens),
        )

    run_batches(journal, names[index::count], make, settings.batch_size, settings.ray)
    journals = [JournalReader(path) for path in paths]
    if not all(progress.complete for progress in journals):
        log.info("%s is written when the other processes have finished", out)
        return None
    entries = {name: entry for progress in journals for name, entry in progress.done.items()}
    write_result({out: paintings.encode_object({name: entries[name] for name in names if name in entries})})
    return out


@functools.partial(alone, path_of=lambda settings: journal_paths(settings)[0], inside=False)
def caption_masks(settings: CaptionSettings) -> Path:
    """Caption every crop with LLaVA-NeXT; run again to continue."""
    entities_dir, output_dir = settings.entities_dir, settings.output_dir
    index, count = settings.index_of_count
    path, paths = journal_paths(settings)
    if not settings.resume:
        path.unlink(missing_ok=True)
    journal = Journal(path, journal_inputs(settings, path), keep=True)
    stems = paintings.entity_folders(entities_dir)  # process p takes every n-th from the p-th on (published)
    concepts: dict[str, str] = {}
    for stem in stems[index::count]:
        try:
            concepts |= concepts_of(entities_dir, stem)
            journal.left_out.pop(stem, None)
        except ValueError as error:
            journal.leave_out(stem, str(error))
    for key, entry in list(journal.done.items()):
        if concepts.get(key) != entry.get("concept"):  # the object has another name now
            del journal.done[key]
    if settings.resume and not journal.done:  # what earlier runs made is taken over
        others = [JournalReader(path) for path in sorted(output_dir.glob("captions_*of*.jsonl"))]
        same = [other for other in others if other.path != path and other.inputs == journal.inputs]
        sources = [(backup, read_captions(backup)) for backup in sorted(output_dir.glob("backup_*.json"))]
        for source, by_stem in [*sources, *((other.path, captions_of(other)) for other in same)]:
            taken: dict[str, dict[str, Any]] = {}
            for stem, captions in by_stem.items():
                for name, text in captions.items() if isinstance(captions, dict) else ():
                    key = f"{stem}/{name}"
                    if key in concepts and isinstance(text, str) and not damaged(text):
                        taken[key] = {"concept": concepts[key], "caption": text, "from": source.name}
            if taken:
                log.info("%d captions taken over from %s", len(taken), source)
                journal.add_all(taken)
    to_caption = [key for key in concepts if "from" not in journal.done.get(key, {})]

    def make() -> tuple[Load, Answer]:
        how = settings.model_id, settings.precision
        model = functools.cache(lambda: open_model(*how, dtype=settings.dtype))

        def answer(crops: Sequence[tuple[np.ndarray, str]]) -> list[dict[str, Any]]:
            images_u8, named = [crop_u8 for crop_u8, _ in crops], [concept for _, concept in crops]
            texts = caption_crops(model(), images_u8, named, settings.max_new_tokens)
            return [{"concept": name, "caption": text} for name, text in zip(named, texts, strict=True)]

        return lambda key: (read_image(entities_dir / f"{key}.png").rgb_u8, concepts[key]), answer

    run_batches(journal, to_caption, make, settings.batch_size, settings.ray)
    steps = -(-len(to_caption) // settings.batch_size)
    final = output_dir / f"backup_{index}_final.json"
    paintings.write_object(final, {**captions_of(journal, concepts), STEPS: steps})
    journals = [JournalReader(path) for path in paths]
    if all(progress.complete for progress in journals):
        merged: dict[str, dict[str, str]] = {}
        for number, stem in enumerate(stems):
            with contextlib.suppress(ValueError):  # it is left out
                merged |= captions_of(journals[number % count], concepts_of(entities_dir, stem))
        write_result({output_dir / paintings.RAW_CAPTIONS: paintings.encode_object(merged)})
        log.info("captions of all processes: %s", output_dir / paintings.RAW_CAPTIONS)
    return final


def concepts_of(entities_dir: Path, stem: str) -> dict[str, str]:
    """{"stem/mask_j": concept}; ValueError: the annotation is damaged."""
    entities = paintings.read_entities(entities_dir / stem / paintings.ANNOTATIONS)
    return {f"{stem}/{entity.name}": entity.concept for entity in entities}


def captions_of(journal: JournalReader, keys: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """{stem: {mask: caption}} in the order of `keys`, by default as they were made."""
    captions: dict[str, dict[str, str]] = {}
    for key in journal.done if keys is None else keys:
        if key in journal.done:
            stem, _, name = key.rpartition("/")
            captions.setdefault(stem, {})[name] = journal.done[key]["caption"]
    return captions
