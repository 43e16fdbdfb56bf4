"""The training run of a locator, with checks of what was learned, and the folders of locators."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from datasets.geometry import iou
from datasets.relations import Place
from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.files import read_json, write_atomic, write_json
from ldm.images import read_image
from ldm.mllm import training
from ldm.mllm.llava_original import merge_into
from ldm.mllm.model import Chat, ChatExample, Mllm, load_model, load_processor
from ldm.mllm.templates import TEMPLATES
from ldm.registry.models import existing_folder
from ldm.settings.config import dump_yaml, to_plain, write_config
from ldm.training.fit import Task, fit, make_accelerator
from ldm.training.run import refuse_foreign
from llava_bifrost.build_dataset.records import LocatorRecord, read_records
from llava_bifrost.language.answer import satisfies
from llava_bifrost.language.codec import Codec, frame_of
from llava_bifrost.language.instruction import make_question
from llava_bifrost.locator import CONFIG, Locator, read_locator_config
from llava_bifrost.model import ConvertLocator, MergeLocator
from llava_bifrost.settings import LocatorConfig
from llava_bifrost.train import TrainConfig

log = logging.getLogger(__name__)

RELEASED = "Converted from the released Bifrost MLLM; its training format is not documented."


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


def fine_tune_locator(config: TrainConfig) -> None:
    """Train a locator from a vision-language model, check its answers; the same command again continues."""
    refuse_foreign(config.out, ["adapter", "model"], "out")
    accelerator, records = make_accelerator(config.fit, config.out), read_records(config.data)
    held_out = [] if config.validation is None else read_records(config.validation)
    processor = load_processor(config.model)
    base: Any = load_model(config.model, DTYPES[config.dtype]).to(accelerator.device)
    answers = locator_config(config, str(base.config.model_type))
    model: Any = training.make_trainable(base, config.lora, config.fit.seed, config.gradient_checkpointing)
    if accelerator.is_main_process:
        write_atomic(config.out / "config.yaml", dump_yaml(config).encode())
        count = sum(value.numel() for value in model.parameters() if value.requires_grad)
        log.info("%d examples, %d trained weights, codec %s", len(records), count, answers.codec)
    codec = Codec(answers.codec, answers.format, answers.decimals)
    refuse_other_format(records, config.data, codec.fmt)
    refuse_other_format(held_out, config.validation, codec.fmt)
    validation, measured = held_out[: config.validation_samples], held_out[: config.measured]

    def measure(model: nn.Module) -> dict[str, float]:
        with accelerator.autocast():
            return measure_free_answers(Locator(Mllm(model, processor, config.model), answers), measured)

    chat = Chat(processor, TEMPLATES.get(answers.template or ""))
    task = Task(
        training.answer_loss, LocatorData(records, codec, processor), chat.examples,
        held_out=LocatorData(validation, codec, processor) if validation else None,
        measure=measure if measured else None,
        layout=training.adapter_layout(model, lambda folder: write_config(folder / CONFIG, answers)),
        rates=lambda name: config.projector_lr if training.is_projector(name) else config.fit.lr)  # fmt: skip
    fit(config.fit, config.out, model, task, accelerator)
    if not accelerator.is_main_process:
        return
    if config.lora.rank:
        with folder_written_whole(config.out / "adapter") as folder:
            model.save_pretrained(str(folder))
            write_config(folder / CONFIG, answers)
        model = model.merge_and_unload()
    whole = model.to(DTYPES[config.dtype]).eval()
    if config.merge or not config.lora.rank:
        training.save_model(whole, processor, config.out / "model", CONFIG, answers)
        log.info("wrote %s", config.out / "model")
    if not config.checked:
        return
    # Free answers that do not parse are a warning: constrained decoding repairs the form, not the training.
    locator = Locator(Mllm(whole, processor, config.out), answers)
    chosen = (held_out or records)[: config.checked]
    questions = [question_of(record, codec) for record in chosen]
    free, images = free_answers(locator, chosen), [read_image(record.image).rgb_u8 for record in chosen]
    report = [
        {"id": record.id, "asked": question, "free": text, "parses": location is not None,
         "constrained": candidate.text}
        for record, question, (text, location), candidate
        in zip(chosen, questions, free, locator.answer(images, questions), strict=True)]  # fmt: skip
    good = sum(location is not None for _, location in free)
    log.info("%d of %d free answers parse, all constrained ones do", good, len(free))
    if good < len(free):
        log.warning("free answers that do not parse: train longer, or look at check.json")
    result = {"answered": len(chosen), "free_answers_that_parse": good, "answers": report}
    write_json(config.out / "check.json", result)


def refuse_other_format(records: Sequence[LocatorRecord], path: Path | None, fmt: str) -> None:
    """ValueError where the depth of a record has another meaning than in answers of format `fmt`."""
    other = next((record for record in records if record.format != fmt), None)
    if other is not None:
        wrong = f"{path}: record {other.id} answers in format {other.format}, training in {fmt}"
        why = "one gives the depth of the centre, the other the median"
        way = f"Build the data with --format {fmt}, or set format={other.format}"
        raise ValueError(f"{wrong}: {why}. {way}")


def locator_config(config: TrainConfig, family: str) -> LocatorConfig:
    """How the trained locator is asked and answers; `auto` follows the locator.json of the start."""
    known = read_locator_config(config.model, family)
    template: str | None = config.template
    if template == "auto":
        original = family == "llava" and not (config.model / CONFIG).is_file()
        template = "vicuna_v1" if original else known.template
    codec = known.codec if config.codec == "auto" else config.codec
    return LocatorConfig(config.format, codec, config.decimals, template, known.names, known.notice)


def measure_free_answers(locator: Locator, records: Sequence[LocatorRecord]) -> dict[str, float]:
    """Of free greedy answers: fraction that parses, mean IoU and depth error, fraction true to the sentence.

    An answer that cannot be read counts as IoU 0, depth error 1 and an instruction that is not satisfied.
    """
    ious, errors, held, parsed = [], [], [], 0
    for record, (_, location) in zip(records, free_answers(locator, records), strict=True):
        parsed += location is not None
        ious.append(iou(location.box01_xyxy, record.location.box01_xyxy) if location else 0.0)
        errors.append(abs(location.d - record.location.d) if location else 1.0)
        if record.request is not None and set(record.request.anchors) <= record.anchors.keys():
            clauses = satisfies(location, record.request, record.anchors) if location else {"": False}
            held += [float(all(clauses.values()))] if clauses else []
    return {
        "parsed": parsed / max(len(records), 1),
        "iou": float(np.mean(ious)),
        "depth_error": float(np.mean(errors)),
        "satisfied": float(np.mean(held)) if held else float("nan"),
    }


def free_answers(locator: Locator, records: Sequence[LocatorRecord]) -> list[tuple[str, Place | None]]:
    """Greedy answers without any constraint, and the places that they say, if readable."""
    images = [read_image(record.image).rgb_u8 for record in records]
    return locator.answer_freely(images, [question_of(record, locator.codec) for record in records])


def convert_adapter(settings: ConvertLocator) -> None:
    """Merge the released adapter into LLaVA-1.5; every tensor is used, or nothing is written."""
    config = LocatorConfig(settings.format, "bifrost", settings.decimals, settings.template, (), RELEASED)
    report = merge_into(settings.base, settings.adapter, settings.out, also={CONFIG: to_plain(config)})
    used = f"all {report['adapter_tensors']} tensors of the adapter used"
    pairs, replaced = report["lora_pairs_merged"], ", ".join(report["weights_replaced"])
    log.info("wrote %s: %s, %d LoRA pairs merged, replaced: %s", settings.out, used, pairs, replaced)


def merge_adapter(settings: MergeLocator) -> None:
    """Merge an adapter that was trained here into its base model; one weight is in memory at a time."""
    family = str(read_json(existing_folder(settings.base) / "config.json").get("model_type"))
    config = read_locator_config(settings.adapter, family)
    if not (settings.adapter / CONFIG).is_file():
        log.warning("%s has no %s; the answer format of the family is assumed", settings.adapter, CONFIG)
    also, dtype = {CONFIG: to_plain(config)}, DTYPES[settings.dtype]
    report = merge_into(settings.base, settings.adapter, settings.out, False, dtype, also)
    log.info("wrote %s: %d LoRA pairs merged", settings.out, report["lora_pairs_merged"])
