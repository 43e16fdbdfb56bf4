"""The language model that a prompt writer is made of: loaded, quantised where that works, made trainable."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn

from inpainting.models.image_to_text.adapter import is_adapter, load_adapter
from inpainting.models.image_to_text.prompter import base_folder
from inpainting.models.image_to_text.settings import PromptTraining
from ldm.device import DTYPES
from ldm.mllm.load import Mllm, four_bit_works, load_four_bit, load_model, load_processor
from ldm.mllm.lora import LoraSettings, make_trainable
from ldm.mllm.training import prepared
from ldm.registry.models import model_folder
from ldm.training.checkpoints import (
    STATE,
    Layout,
    checkpoint_folders,
    numbered_folders,
    read_checkpoint,
    trained,
)

log = logging.getLogger(__name__)

WHOLE = Layout("language_model.safetensors")  # checkpoints of fine_tuning_type=full


def open_base(config: PromptTraining, device: torch.device) -> Mllm:
    """The model to start from. Where 4 bits do not work it is not quantised, and says so."""
    folder, dtype = model_folder(base_folder(config.model)), DTYPES[config.dtype_name]
    quantised = config.fine_tuning_type in ("qlora", "quantized")
    if quantised and four_bit_works():
        return load_four_bit(folder, torch.bfloat16, {"": device}, dtype)
    if quantised:
        log.warning(
            "fine_tuning_type=%s: 4-bit weights need CUDA and bitsandbytes (requirements-extras.txt); "
            "the model stays in %s, which takes more memory and answers a little otherwise",
            config.fine_tuning_type,
            config.dtype_name,
        )
    model = load_model(folder, dtype).to(device)
    return Mllm(model.eval(), load_processor(folder, model.config), folder)


def trainable(config: PromptTraining, mllm: Mllm) -> nn.Module:
    """The model with what trains: an adapter, or the language model itself with the projector."""
    base = mllm.model
    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    whole = config.fine_tuning_type == "full"
    settings = LoraSettings(rank=0) if whole else config.lora
    model = make_trainable(prepared(base, config.gradient_checkpointing), settings, config.fit.seed)
    if isinstance(model, PeftModel):
        # A hub name holds on other machines too, the path of its local copy does not.
        model.peft_config["default"].base_model_name_or_path = config.model
    return model


def refuse_foreign(out: Path) -> None:
    """ValueError for a run folder with an adapter of another program, which a training would overwrite."""
    for folder in numbered_folders(out):
        if is_adapter(folder / "adapter") and not (folder / STATE).is_file():
            raise ValueError(
                f"{folder / 'adapter'} was not trained here: this run cannot go on from it, and would "
                "overwrite it; choose another project_dir"
            )


def checkpoint_of(config: PromptTraining) -> Path | None:
    """What only_val tests: an adapter's folder, or a checkpoint of a full training; None: the base."""
    named, out = config.checkpoint, config.project_dir
    if named == "none" or config.fine_tuning_type == "quantized":
        return None
    full = config.fine_tuning_type == "full"
    adapters = [path for path in numbered_folders(out) if is_adapter(path / "adapter")]
    there = checkpoint_folders(out) if full else adapters
    if named == "latest" and there:
        return there[-1] if full else there[-1] / "adapter"
    if not full and named != "latest":
        for folder in (out / named / "adapter", out / named, Path(named)):
            if is_adapter(folder):
                return folder
    elif full and (out / named / STATE).is_file():
        return out / named
    names = ", ".join(path.name for path in there) or "none"
    raise ValueError(
        f"checkpoint={named}: {out} holds no such checkpoint (there: {names}); train it with only_val=false, "
        "or take checkpoint=none to test the model without adapter"
    )


def with_checkpoint(config: PromptTraining, mllm: Mllm, folder: Path | None) -> nn.Module:
    """The model with the weights of a checkpoint, in eval mode; released adapters are renamed in memory."""
    if folder is None:
        return mllm.model
    if config.fine_tuning_type != "full":
        return load_adapter(mllm.model, folder)
    model = trainable(config, mllm)
    weights = trained(model)
    stored, _, _ = read_checkpoint(folder, WHOLE, weights)
    with torch.no_grad():
        for name, value in stored.items():
            weights[name].copy_(value)
    return model.eval()
