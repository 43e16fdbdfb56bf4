"""A training run or a test of the prompt writer."""

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel, prepare_model_for_kbit_training

from inpainting.models.image_to_text.batches import PromptCollate, WithAlphas
from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.evaluation.validate import HeldOutTest
from inpainting.models.image_to_text.settings import PromptTraining
from inpainting.models.image_to_text.writer import PromptWriter, base_folder, is_adapter
from inpainting.prompts import CONFIG_FILE
from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.files import write_atomic
from ldm.mllm.model import Mllm, four_bit_works, load_model, load_processor, load_quantised
from ldm.mllm.training import (
    ADAPTER_CONFIG,
    adapter_layout,
    answer_loss,
    continue_adapter,
    load_adapter,
    make_trainable,
    prepared,
)
from ldm.registry.models import local_or_hub_folder
from ldm.settings.config import dump_yaml, write_config
from ldm.training.fit import Task, fit, make_accelerator
from ldm.training.run import (
    STATE,
    Layout,
    named_checkpoint,
    read_checkpoint,
    refuse_foreign,
    trained,
)
from ldm.training.settings import LoraSettings, ResumableSampler

log = logging.getLogger(__name__)


WHOLE = Layout("language_model.safetensors")  # checkpoints of fine_tuning_type=full


def train_prompt_writer(config: PromptTraining) -> Path:
    """Train or test, the same call again continues; returns the folder of the adapter, model or results."""
    accelerator = make_accelerator(config.fit, config.project_dir)
    checkpoint = checkpoint_of(config) if config.only_val else None
    if not config.only_val:
        advice = "project_dir; resume_from=FOLDER trains on from a released adapter"
        refuse_foreign(config.project_dir, ["adapter", "model"], advice)
    writer = PromptWriter(open_mllm(config, accelerator.device, checkpoint), config.prompter)
    held_out = None
    if config.val.instances:
        data = LlavaDataset(config.data, config.val.split, config.fit.seed)
        singles = [[index] for index in range(min(len(data), config.val.instances))]
        images = WithAlphas(data, config.val_alphas, lambda epoch: singles, steps=1)
        held_out = HeldOutTest(config, accelerator, writer, images)
    if not config.only_val:
        result = fine_tune(config, accelerator, writer, held_out)
    elif held_out is None:
        raise ValueError("only_val needs val.instances of at least 1")
    else:
        held_out.run(checkpoint)
        result = config.folder
    accelerator.end_training()
    return result


def fine_tune(
    config: PromptTraining, accelerator: Accelerator, writer: PromptWriter, held_out: HeldOutTest | None
) -> Path:
    """Train `writer`; an opacity curriculum takes the first half of the steps (published)."""
    out, full, mllm, options = config.project_dir, config.fine_tuning_type == "full", writer.mllm, config.fit
    data, processes = LlavaDataset(config.data, seed=options.seed), accelerator.num_processes
    count = min(config.train_samples or len(data), len(data))
    training = WithAlphas(
        data,
        config.alphas,
        ResumableSampler(count, options.batch, options.seed).epoch,
        steps=math.ceil(0.5 * options.steps_for(count, processes)),
        per_step=processes * options.accumulate,
        seed=options.seed,
    )
    if accelerator.is_main_process:
        if held_out is not None:
            held_out.data[0], held_out.models  # noqa: B018 -- errors come now, not after an epoch
        write_atomic(out / "config.yaml", dump_yaml(config).encode())
        weights = sum(value.numel() for value in trained(mllm.model).values())
        log.info("%d paintings, %d trained weights", len(training), weights)
    layout = adapter_layout(mllm.model, lambda folder: write_config(folder / CONFIG_FILE, config.prompter))
    task = Task(
        answer_loss,
        training,
        PromptCollate(writer.chat, config.max_length, config.append_eos),
        held_out=None if held_out is None else held_out.data,
        measure=held_out,
        layout=WHOLE if full else layout,
    )
    outcome = fit(options, out, mllm.model, task, accelerator)
    result = out / ("model" if full else "adapter")
    if accelerator.is_main_process:
        with folder_written_whole(result) as partial:
            if full:
                mllm.model.to(DTYPES[config.dtype_name])
                mllm.model.config.use_cache = True
                mllm.model.save_pretrained(partial)
                mllm.processor.save_pretrained(partial)
                write_config(partial / CONFIG_FILE, config.prompter)
            else:
                shutil.copytree(outcome.newest / "adapter", partial, dirs_exist_ok=True)
        log.info("wrote %s", result)
    accelerator.wait_for_everyone()
    return result


def open_mllm(config: PromptTraining, device: torch.device, checkpoint: Path | None = None) -> Mllm:
    """The model with what trains: an adapter, or the language model itself with the projector.

    With only_val the model with the weights of a checkpoint, if any, in eval mode; released adapters are
    renamed in memory. Where 4 bits do not work it is not quantised, and says so.
    """
    folder, dtype = local_or_hub_folder(base_folder(config.model)), DTYPES[config.dtype_name]
    quantised = config.fine_tuning_type in ("qlora", "quantized")
    if quantised and four_bit_works():
        mllm = load_quantised(folder, torch.bfloat16, "4bit", {"": device}, dtype)
    else:
        if quantised:
            log.warning(
                "fine_tuning_type=%s: 4-bit weights need CUDA and bitsandbytes (requirements-extras.txt); "
                "the model stays in %s, which takes more memory and answers a little otherwise",
                config.fine_tuning_type,
                config.dtype_name,
            )
        model = load_model(folder, dtype).to(device)
        mllm = Mllm(model.eval(), load_processor(folder, model.config), folder)
    full, base = config.fine_tuning_type == "full", mllm.model
    if config.only_val and checkpoint is None:
        return mllm
    if config.only_val and checkpoint is not None and not full:
        return replace(mllm, model=load_adapter(base, checkpoint).eval())
    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    settings = LoraSettings(rank=0) if full else config.lora
    model = make_trainable(prepared(base, config.gradient_checkpointing), settings, config.fit.seed)
    if isinstance(model, PeftModel):
        # A hub name holds on other machines too, the path of its local copy does not.
        model.peft_config["default"].base_model_name_or_path = config.model
    if config.resume_from is not None and not config.only_val:
        nested = config.resume_from / "adapter"
        continue_adapter(model, nested if is_adapter(nested) else config.resume_from)
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
    found = named_checkpoint(out, named, STATE if full else f"adapter/{ADAPTER_CONFIG}", advice)
    return found if full else found / "adapter"
