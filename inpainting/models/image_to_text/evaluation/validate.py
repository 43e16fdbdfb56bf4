"""Held-out paintings: answered and measured while a prompt writer trains, and in full when it is tested.

A test is journalled in its folder: the same command again continues where it stopped.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from inpainting.data.batches import run_batches
from inpainting.models.image_to_text.batches import Item, PromptCollate, WithAlphas
from inpainting.models.image_to_text.evaluation.metric_models import PromptMetricModels
from inpainting.models.image_to_text.evaluation.predictions import Prediction
from inpainting.models.image_to_text.evaluation.report import measure_prompts, tracked
from inpainting.models.image_to_text.settings import Decoding, PromptTraining
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.prompts import LLAVA_PROMPT, Query, read_prompt
from ldm.files import json_bytes
from ldm.images import encode_png
from ldm.journal import Journal, JournalReader, stamp_path
from ldm.metrics.backbones import hash_of
from ldm.result import write_result
from ldm.settings.config import to_plain
from ldm.sheet import grid

log = logging.getLogger(__name__)

NOT_ANSWERS = ("metric_models", "resamples", "sheet", "instances")  # options that change no answer


class HeldOutTest:
    """Answers and measures held-out images.

    The first process writes predictions.jsonl, metrics.json and sheet.png.
    """

    def __init__(
        self, config: PromptTraining, accelerator: Accelerator, writer: PromptWriter, data: WithAlphas
    ) -> None:
        self.config, self.accelerator, self.writer, self.data = config, accelerator, writer, data
        self.plain = config.val.question == "plain"
        self.collate = PromptCollate(writer.chat, question=LLAVA_PROMPT if self.plain else None)

    @cached_property
    def models(self) -> PromptMetricModels:
        """The networks of the metrics."""
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
        facts |= {"alphas": to_plain(config.val_alphas), "template": config.template, "shard": [rank, world]}
        facts |= {
            "type": config.fine_tuning_type,
            "dtype": config.dtype_name,
            "precision": config.fit.precision,
        }
        journal = Journal(stamp_path(out, f"predictions_{rank}"), facts, keep=True)
        run_batches(
            journal, stems[rank::world], lambda stem: self.data[numbers[stem]], answer, config.val.batch
        )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            journals = [JournalReader(stamp_path(out, f"predictions_{index}")) for index in range(world)]
            done = {stem: entry for progress in journals for stem, entry in progress.done.items()}
            answered = [
                (numbers[stem], [Prediction(**{**row, "box": None}) for row in done[stem]["rows"]])
                for stem in stems
                if stem in done
            ]
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
        return [
            [
                Prediction(
                    stem=item["image_stems"],
                    region=item["entity_names"][number],
                    prediction=answer.strip() if self.plain else read_prompt(answer, color),
                    caption=item["entity_captions"][number],
                    root=item["entity_noun_chunk_roots"][number],
                    last=number == len(item["entity_colors"]) - 1,
                    color=color,
                    crop=Path(item["entity_paths"][number]).as_posix(),
                )
                for number, color in enumerate(item["entity_colors"])
            ]
            for item, answer in zip(items, answers, strict=True)
        ]

    def write(
        self, answered: Sequence[tuple[int, list[Prediction]]], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """predictions.jsonl, metrics.json, sheet.png from (number of the image, its rows) -> metrics.

        facts: what else the metrics' file says
        """
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
