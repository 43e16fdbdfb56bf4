"""Train the prompt writer on paintings with masked regions, or test one (paper sections 3.1 and 4.2).

    accelerate launch -m inpainting.models.image_to_text.fine_tune_llavanext train \
        --config-path=configs/inpainting/image_to_text/train/llava_multimask.yaml [key=value ...]

To continue an interrupted run, run the same command again. With `only_val: true` nothing is trained: all
held-out images are answered and measured.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from accelerate import Accelerator
from torch import nn

from inpainting.config_path import find_config
from inpainting.models.image_to_text.base import (
    WHOLE,
    checkpoint_of,
    open_base,
    refuse_foreign,
    trainable,
    with_checkpoint,
)
from inpainting.models.image_to_text.collate import PromptCollate
from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.evaluation.validate import Validating, held_out, test
from inpainting.models.image_to_text.prompter import write_card
from inpainting.models.image_to_text.samplers import AlphaScheduleBatchSampler, WithAlphas
from inpainting.models.image_to_text.settings import PromptTraining
from inpainting.models.image_to_text.writer import PromptWriter
from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.files import write_atomic
from ldm.mllm.load import Mllm
from ldm.mllm.training import adapter_layout, answer_loss
from ldm.settings.cli import new_app, run_module
from ldm.settings.config import dump_yaml, load_config
from ldm.training.fit import Task, fit, make_accelerator

log = logging.getLogger(__name__)


def train(config: PromptTraining) -> Path:
    """Train or test; returns the folder of the adapter, of the model, or of the results."""
    accelerator = make_accelerator(config.fit, config.project_dir)
    if config.only_val:
        checkpoint = checkpoint_of(config)
        mllm = open_base(config, accelerator.device)
        tested = replace(mllm, model=with_checkpoint(config, mllm, checkpoint))
        result = test(config, accelerator, tested, checkpoint)
    else:
        refuse_foreign(config.project_dir)
        result = fine_tune(config, accelerator, open_base(config, accelerator.device))
    accelerator.end_training()
    return result


def fine_tune(config: PromptTraining, accelerator: Accelerator, mllm: Mllm) -> Path:
    """Train; the same call again continues."""
    out, full = config.project_dir, config.fine_tuning_type == "full"
    model = trainable(config, mllm)
    writer = PromptWriter(replace(mllm, model=model), config.card())
    training, validation = opened(config, accelerator.num_processes), held_out(config)
    if validation is not None and accelerator.is_main_process:
        validation[0]  # what it lacks is said now, not after the first epoch
    if accelerator.is_main_process:
        write_atomic(out / "config.yaml", dump_yaml(config).encode())
        count = sum(value.numel() for value in model.parameters() if value.requires_grad)
        log.info("%d paintings, %d trained weights", len(training), count)
    task = Task(
        answer_loss,
        training,
        PromptCollate(writer.chat, config.max_length, config.append_eos),
        held_out=validation,
        measure=None if validation is None else Validating(config, accelerator, writer, validation),
        layout=WHOLE if full else adapter_layout(model, lambda folder: write_card(folder, config.card())),
    )
    outcome = fit(config.fit, out, model, task, accelerator)
    result = out / ("model" if full else "adapter")
    if accelerator.is_main_process:
        save(config, replace(mllm, model=model), outcome.newest, result)
        log.info("wrote %s", result)
    accelerator.wait_for_everyone()
    return result


def opened(config: PromptTraining, processes: int) -> WithAlphas:
    """The training images, with the opacity of their masks at each step."""
    data = LlavaDataset.of(config.data, "train", config.fit.seed)
    count = min(config.train_samples or len(data), len(data))
    scheduler = config.alphas.make(config.fit.seed)
    scheduler.set_num_steps(math.ceil(0.5 * config.fit.steps_for(count, processes)))
    sampler = AlphaScheduleBatchSampler(
        range(count),
        scheduler,
        processes,
        config.fit.accumulate,
        config.data.max_concepts,
        config.fit.batch,
        shuffle=True,
        seed=config.fit.seed,
    )
    return WithAlphas(data, sampler)


def save(config: PromptTraining, mllm: Mllm, newest: Path, folder: Path) -> None:
    """adapter/: that of the newest checkpoint; model/: the whole model, ready to ask."""
    with folder_written_whole(folder) as partial:
        if config.fine_tuning_type != "full":
            shutil.copytree(newest / "adapter", partial, dirs_exist_ok=True)
            return
        model: nn.Module = mllm.model.to(DTYPES[config.dtype_name])
        model.config.use_cache = True  # type: ignore[union-attr]
        model.save_pretrained(partial)  # type: ignore[operator]
        mllm.processor.save_pretrained(partial)
        write_card(partial, config.card())


def train_verb(
    config_path: Annotated[Path, typer.Option(help="YAML file of settings", metavar="FILE")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted for sections")] = None,
) -> None:
    """Train the prompt writer, or test it with only_val=true; the same command again continues."""
    train(load_config(PromptTraining, find_config(config_path), overrides or []))


def build_app() -> typer.Typer:
    app = new_app("Train or test the prompt writer.")
    app.command("train")(train_verb)
    return app


if __name__ == "__main__":
    run_module(build_app)
