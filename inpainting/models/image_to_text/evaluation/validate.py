"""Held-out paintings: answered while a prompt writer trains, and in full when it is tested.

A test is journalled in its folder: the same command again continues where it stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from inpainting.data.batches import run_batches
from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.evaluation.answers import (
    SHEET,
    Answering,
    write_results,
    write_sheet,
)
from inpainting.models.image_to_text.evaluation.metric_models import Judges
from inpainting.models.image_to_text.evaluation.predictions import Prediction
from inpainting.models.image_to_text.evaluation.report import tracked
from inpainting.models.image_to_text.samplers import AlphaScheduleBatchSampler, WithAlphas
from inpainting.models.image_to_text.settings import PromptTraining
from inpainting.models.image_to_text.writer import PromptWriter
from ldm.journal import Journal, Progress, stamp_path
from ldm.metrics.weights import hash_of
from ldm.mllm.load import Mllm
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

NOT_ANSWERS = ("judges", "resamples", "sheet", "instances")  # options that change no answer


def held_out(config: PromptTraining) -> WithAlphas | None:
    """The held-out images of a run; None where there shall be none."""
    if not config.val.instances:
        return None
    data = LlavaDataset.of(config.data, config.val.split, config.fit.seed)
    scheduler = config.val_alphas.make(config.fit.seed)
    scheduler.set_num_steps(1)
    first = range(min(len(data), config.val.instances))
    return WithAlphas(data, AlphaScheduleBatchSampler(first, scheduler, 1, 1, config.data.max_concepts))


class Validating:
    """Answers and measures held-out images between two steps of a training; see `ldm.training.fit.fit`.

    The first process writes predictions.jsonl, metrics.json and sheet.png of the newest validation.
    """

    def __init__(
        self, config: PromptTraining, accelerator: Accelerator, writer: PromptWriter, data: WithAlphas
    ) -> None:
        self.config, self.accelerator, self.data = config, accelerator, data
        self.answering = Answering(writer, config.val)
        self.judges = Judges.load(config.val.judges, accelerator.device)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        options, accelerator = self.config.val, self.accelerator
        mine = list(range(len(self.data)))[accelerator.process_index :: accelerator.num_processes]
        found: list[tuple[int, list[Prediction]]] = []
        for start in range(0, len(mine), options.batch):
            numbers = mine[start : start + options.batch]
            with accelerator.autocast():
                said = self.answering.predictions([self.data[number] for number in numbers])
            found += zip(numbers, said, strict=True)
        found = sorted(gather_object(found), key=lambda pair: pair[0])
        if not accelerator.is_main_process:
            return {}
        rows = [row for _, some in found for row in some]
        report = write_results(self.config.folder, rows, self.judges, options.resamples, {})
        shown = found[: options.sheet]
        items = [self.data[number] for number, _ in shown]
        write_sheet(self.config.folder / SHEET, items, [some for _, some in shown])
        return tracked(report)


def test(config: PromptTraining, accelerator: Accelerator, mllm: Mllm, checkpoint: Path | None) -> Path:
    """Answer and measure all held-out images; returns the folder of the results."""
    data, out = held_out(config), config.folder
    if data is None:
        raise ValueError("only_val needs val.instances of at least 1")
    writer = PromptWriter(mllm, config.card())
    answering = Answering(writer, config.val)
    stems = data.dataset.stems[: len(data)]
    numbers = {stem: number for number, stem in enumerate(stems)}
    rank, world = accelerator.process_index, accelerator.num_processes

    def answer(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        with accelerator.autocast():
            return [{"rows": [asdict(row) for row in rows]} for rows in answering.predictions(items)]

    weights = writer.weights() | ({} if checkpoint is None else {"checkpoint": hash_of(checkpoint)})
    journal = Journal(journal_path(out, rank), facts_of(config, weights, (rank, world)), keep=True)
    run_batches(journal, stems[rank::world], lambda stem: data[numbers[stem]], answer, config.val.batch)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(config, accelerator, data, weights)
    accelerator.wait_for_everyone()
    return out


def journal_path(out: Path, rank: int) -> Path:
    """What a process has answered so far."""
    return stamp_path(out, f"predictions_{rank}")


def facts_of(config: PromptTraining, weights: Mapping[str, Any], shard: tuple[int, int]) -> dict[str, Any]:
    """What decides the answers; a folder that was begun otherwise is not continued."""
    options = {key: value for key, value in to_plain(config.val).items() if key not in NOT_ANSWERS}
    facts = {"weights": weights, "data": to_plain(config.data), "val": options, "seed": config.fit.seed}
    facts |= {"alphas": to_plain(config.val_alphas), "template": config.template, "shard": list(shard)}
    facts |= {"type": config.fine_tuning_type, "dtype": config.dtype_name, "precision": config.fit.precision}
    return facts


def finish(
    config: PromptTraining, accelerator: Accelerator, data: WithAlphas, weights: Mapping[str, Any]
) -> None:
    """The results of all processes as one file, measured."""
    out = config.folder
    done: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for rank in range(accelerator.num_processes):
        progress = Progress(journal_path(out, rank))
        done |= progress.done
        left_out |= progress.left_out
    stems = [stem for stem in data.dataset.stems[: len(data)] if stem in done]
    said = [[Prediction(**{**row, "box": None}) for row in done[stem]["rows"]] for stem in stems]
    judges = Judges.load(config.val.judges, accelerator.device)
    facts = {"left_out": left_out, "weights": weights, "settings": to_plain(config)}
    report = write_results(out, [row for some in said for row in some], judges, config.val.resamples, facts)
    numbers = {stem: number for number, stem in enumerate(data.dataset.stems)}
    shown = range(min(config.val.sheet, len(stems)))
    write_sheet(out / SHEET, [data[numbers[stems[k]]] for k in shown], [said[k] for k in shown])
    main = {name: round(value, 4) for name, value in tracked(report).items() if value is not None}
    log.info("%s: %s", out, json.dumps({name: main[name] for name in list(main)[:4]}))
    if config.fit.tracker != "none":
        accelerator.init_trackers(config.project_dir.name)
        accelerator.log({f"val/{name}": value for name, value in tracked(report).items()})
