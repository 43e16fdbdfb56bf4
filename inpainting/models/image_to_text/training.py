"""A training run or a test of the prompt writer; held-out paintings are answered and measured in both."""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn

from inpainting.data.batches import run_batches
from inpainting.models.image_to_text.dataset import Item, LlavaDataset, PromptCollate, WithAlphas
from inpainting.models.image_to_text.evaluation.predictions import Prediction, PromptMetricModels
from inpainting.models.image_to_text.evaluation.report import measure_prompts, tracked
from inpainting.models.image_to_text.settings import Decoding, PromptTraining
from inpainting.models.image_to_text.writer import PromptWriter, base_folder, is_adapter
from inpainting.prompts import CONFIG_FILE, LLAVA_PROMPT, Query, read_prompt
from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.files import json_bytes, write_atomic
from ldm.images import encode_png
from ldm.journal import Journal, JournalReader, stamp_path
from ldm.metrics.backbones import hash_of
from ldm.mllm import training
from ldm.mllm.model import Mllm, four_bit_works, load_mllm, load_quantised
from ldm.registry.models import local_or_hub_folder
from ldm.result import write_result
from ldm.settings.config import dump_yaml, to_plain, write_config
from ldm.sheet import grid
from ldm.training.fit import Task, fit, make_accelerator
from ldm.training.run import STATE, Layout, named_checkpoint, read_checkpoint, refuse_foreign, trained
from ldm.training.settings import LoraSettings, ResumableSampler

log = logging.getLogger(__name__)

WHOLE = Layout("language_model.safetensors")  # checkpoints of fine_tuning_type=full
ENTITY_PARTS = ("names", "captions", "noun_chunk_roots", "colors", "paths")
NOT_ANSWERS = ("metric_models", "resamples", "sheet", "instances")  # options that change no answer


class HeldOutTest:
    """Answers and measures held-out images; the first process writes the results."""

    def __init__(self, config: PromptTraining, accelerator: Accelerator, writer: PromptWriter) -> None:
        self.config, self.accelerator, self.writer = config, accelerator, writer
        data = LlavaDataset(config.data, config.val.split, config.fit.seed)
        singles = [[index] for index in range(min(len(data), config.val.instances))]
        self.data = WithAlphas(data, config.val_alphas, lambda epoch: singles, steps=1)
        self.plain = config.val.question == "plain"
        self.collate = PromptCollate(writer.chat, question=LLAVA_PROMPT if self.plain else None)

    @cached_property
    def models(self) -> PromptMetricModels:
        return PromptMetricModels.load(self.config.val.metric_models, self.accelerator.device)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Between two steps of a training; see `ldm.training.fit.fit`."""
        rank, batch = self.accelerator.process_index, self.config.val.batch
        mine = list(range(len(self.data)))[rank :: self.accelerator.num_processes]
        answered: list[tuple[int, list[Prediction]]] = []
        for start in range(0, len(mine), batch):
            numbers = mine[start : start + batch]
            answered += zip(numbers, self.predictions([self.data[number] for number in numbers]), strict=True)
        answered = sorted(gather_object(answered), key=lambda pair: pair[0])
        return tracked(self.write(answered, {})) if self.accelerator.is_main_process else {}

    def run(self, checkpoint: Path | None) -> None:
        """Test in full: all held-out images; the same call again continues."""
        config, out = self.config, self.config.folder
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        stems = self.data.dataset.stems[: len(self.data)]
        numbers = {stem: number for number, stem in enumerate(stems)}

        def answer(items: Sequence[Item]) -> list[dict[str, Any]]:
            return [{"rows": [asdict(row) for row in rows]} for rows in self.predictions(items)]

        weights = self.writer.weights() | ({} if checkpoint is None else {"checkpoint": hash_of(checkpoint)})
        # What decides the answers; a folder that was begun otherwise is not continued.
        options = {key: value for key, value in to_plain(config.val).items() if key not in NOT_ANSWERS}
        facts = {"weights": weights, "data": to_plain(config.data), "val": options, "seed": config.fit.seed}
        facts |= {"alphas": to_plain(config.val_alphas), "precision": config.fit.precision}
        facts |= {"type": config.fine_tuning_type, "dtype": config.dtype_name, "template": config.template}
        facts["shard"] = [rank, world]
        journal, mine = Journal(stamp_path(out, f"predictions_{rank}"), facts, keep=True), stems[rank::world]
        load = lambda stem: self.data[numbers[stem]]  # noqa: E731
        run_batches(journal, mine, lambda: (load, answer), config.val.batch)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            journals = [JournalReader(stamp_path(out, f"predictions_{index}")) for index in range(world)]
            done = {stem: entry for progress in journals for stem, entry in progress.done.items()}
            parts, answered = [part.name for part in fields(Prediction)], []  # earlier rows have more
            for stem in (stem for stem in stems if stem in done):
                rows = [Prediction(**{part: row[part] for part in parts}) for row in done[stem]["rows"]]
                answered.append((numbers[stem], rows))
            left_out = {stem: why for progress in journals for stem, why in progress.left_out.items()}
            facts = {"left_out": left_out, "weights": weights, "settings": to_plain(config)}
            metrics = tracked(self.write(answered, facts))
            first = {name: round(value, 4) for name, value in list(metrics.items())[:4]}
            log.info("%s: %s", out, json.dumps(first))
            if config.fit.tracker != "none":
                self.accelerator.init_trackers(config.project_dir.name)
                self.accelerator.log({f"val/{name}": value for name, value in metrics.items()})
        self.accelerator.wait_for_everyone()

    def predictions(self, items: Sequence[Item]) -> list[list[Prediction]]:
        """One Prediction per region of each image, in its order; empty where a tag is missing."""
        options = self.config.val
        decoding = Decoding(options.constrained, longest=options.max_new_tokens)
        queries = []
        for item in items:
            colors = tuple(item["entity_colors"])
            ends_at_full_stop = self.plain and (options.first_sentence or options.constrained)
            tags = () if ends_at_full_stop else colors  # they say where the answer ends
            ask, masks = self.collate.ask(item), tuple(range(len(colors)))
            queries.append(Query(ask.image_u8, ask.question, masks, tags, ("",) * len(colors)))
        with self.accelerator.autocast():
            answers = self.writer.answer(queries, decoding)
        found = []
        for item, answer in zip(items, answers, strict=True):
            rows: list[Prediction] = []
            parts = [item[f"entity_{part}"] for part in ENTITY_PARTS]
            for name, caption, root, color, path in zip(*parts, strict=True):
                text = answer.strip() if self.plain else read_prompt(answer, color)
                last = len(rows) == len(item["entity_names"]) - 1
                crop = Path(path).as_posix()
                rows.append(Prediction(item["image_stems"], name, text, caption, root, last, color, crop))
            found.append(rows)
        return found

    def write(self, answered: list[tuple[int, list[Prediction]]], facts: Mapping[str, Any]) -> dict[str, Any]:
        """predictions.jsonl, metrics.json with `facts`, sheet.png from (number of the image, its rows)."""
        options, folder = self.config.val, self.config.folder
        rows = [row for _, of_image in answered for row in of_image]
        report = {**measure_prompts(rows, self.models, resamples=options.resamples), **facts}
        lines = "".join(row.line() for row in rows).encode()
        write_result({folder / "predictions.jsonl": lines, folder / "metrics.json": json_bytes(report)})
        cells, labels = [], []
        for number, of_image in answered[: options.sheet]:
            item = self.data[number]
            cells.append([np.asarray(item["PIL_masked_images"]), np.asarray(item["PIL_images"])])
            labels.append("\n".join(f"{row.color}: {row.prediction or '-'}" for row in of_image))
        if cells:
            write_result({folder / "sheet.png": encode_png(grid(cells, ("asked", "image"), labels))})
        return report


def train_prompt_writer(config: PromptTraining) -> Path:
    """Train or test, the same call again continues; returns the folder of the adapter, model or results.

    An opacity curriculum takes the first half of the steps (published).
    """
    out, full, options = config.project_dir, config.fine_tuning_type == "full", config.fit
    accelerator = make_accelerator(options, out)
    checkpoint = checkpoint_of(config) if config.only_val else None
    if not config.only_val:
        advice = "project_dir; resume_from=FOLDER trains on from a released adapter"
        refuse_foreign(out, ["adapter", "model"], advice)
    settings, mllm = config.prompter, open_mllm(config, accelerator.device, checkpoint)
    writer = PromptWriter(mllm, settings)
    held_out = HeldOutTest(config, accelerator, writer) if config.val.instances else None
    if config.only_val:
        if held_out is None:
            raise ValueError("only_val needs val.instances of at least 1")
        held_out.run(checkpoint)
        accelerator.end_training()
        return config.folder
    data, processes = LlavaDataset(config.data, seed=options.seed), accelerator.num_processes
    count = min(config.train_samples or len(data), len(data))
    batches = ResumableSampler(count, options.batch, options.seed).epoch
    steps, per_step = math.ceil(0.5 * options.steps_for(count, processes)), processes * options.accumulate
    examples = WithAlphas(data, config.alphas, batches, steps, per_step, options.seed)
    if accelerator.is_main_process:
        if held_out is not None:
            held_out.data[0], held_out.models  # noqa: B018 -- errors come now, not after an epoch
        write_atomic(out / "config.yaml", dump_yaml(config).encode())
        weights = sum(value.numel() for value in trained(mllm.model).values())
        log.info("%d paintings, %d trained weights", len(examples), weights)
    layout = training.adapter_layout(mllm.model, lambda at: write_config(at / CONFIG_FILE, settings))
    layout, images = WHOLE if full else layout, None if held_out is None else held_out.data
    collate = PromptCollate(writer.chat, config.max_length, config.append_eos)
    task = Task(training.answer_loss, examples, collate, held_out=images, measure=held_out, layout=layout)
    newest, _ = fit(options, out, mllm.model, task, accelerator)
    result = out / ("model" if full else "adapter")
    if accelerator.is_main_process:
        if full:
            whole = mllm.model.to(DTYPES[config.dtype_name])
            training.save_model(whole, mllm.processor, result, CONFIG_FILE, settings)
        else:
            with folder_written_whole(result) as partial:
                shutil.copytree(newest / "adapter", partial, dirs_exist_ok=True)
        log.info("wrote %s", result)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def open_mllm(config: PromptTraining, device: torch.device, checkpoint: Path | None = None) -> Mllm:
    """The model with what trains; with only_val with the weights of a checkpoint, if any, in eval mode."""
    folder, dtype = local_or_hub_folder(base_folder(config.model)), DTYPES[config.dtype_name]
    quantised = config.fine_tuning_type in ("qlora", "quantized")
    if quantised and four_bit_works():
        mllm = load_quantised(folder, torch.bfloat16, "4bit", device, dtype)
    else:
        if quantised:
            why = "4-bit weights need CUDA and bitsandbytes (requirements-extras.txt); the model stays in"
            text = "fine_tuning_type=%s: %s %s, which takes more memory and answers a little otherwise"
            log.warning(text, config.fine_tuning_type, why, config.dtype_name)
        mllm = load_mllm(folder, str(device), config.dtype_name)
    full, base = config.fine_tuning_type == "full", mllm.model
    if config.only_val and checkpoint is None:
        return mllm
    if config.only_val and checkpoint is not None and not full:
        return replace(mllm, model=training.load_adapter(base, checkpoint).eval())
    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    settings = LoraSettings(rank=0) if full else config.lora
    model = training.make_trainable(base, settings, config.fit.seed, config.gradient_checkpointing)
    if isinstance(model, PeftModel):
        # A hub name holds on other machines too, the path of its local copy does not.
        model.peft_config["default"].base_model_name_or_path = config.model
    if config.resume_from is not None and not config.only_val:
        nested = config.resume_from / "adapter"
        training.continue_adapter(model, nested if is_adapter(nested) else config.resume_from)
    if checkpoint is not None:
        weights = trained(model)
        with torch.no_grad():
            for name, value in read_checkpoint(checkpoint, WHOLE, weights)[0].items():
                weights[name].copy_(value)
        model.eval()
    return replace(mllm, model=model)


def checkpoint_of(config: PromptTraining) -> Path | None:
    """What only_val tests: an adapter's folder, or a checkpoint of a full training; None: the base."""
    named, out = config.checkpoint, config.project_dir
    if named == "none" or config.fine_tuning_type == "quantized":
        return None
    full = config.fine_tuning_type == "full"
    for folder in () if full else (out / named, Path(named)):
        if is_adapter(folder):
            return folder
    advice = "; train it with only_val=false, or take checkpoint=none to test the model without adapter"
    found = named_checkpoint(out, named, STATE if full else f"adapter/{training.ADAPTER_CONFIG}", advice)
    return found if full else found / "adapter"
