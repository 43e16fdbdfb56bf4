"""What the trainers of image-and-text models share: the model made ready, batches, loss, checkpoints.

Legend: b rows of a batch, t tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from ldm.mllm.chat import Chat, ChatExample
from ldm.mllm.lora import ADAPTER, adapter_key
from ldm.training.checkpoints import Layout


def prepared(base: Any, gradient_checkpointing: bool) -> Any:
    """The model ready for training: no cache, activations recomputed where asked."""
    base.config.use_cache = False
    if gradient_checkpointing:
        switch = getattr(base, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
        switch = switch or base.gradient_checkpointing_enable
        switch({"use_reentrant": False})
    return base


def tensors_of(chat: Chat, asks: list[ChatExample]) -> dict[str, Tensor]:
    """Questions with answers -> model inputs with labels (b, t) on the answers; tensors only."""
    return {key: value for key, value in chat.examples(asks).items() if isinstance(value, Tensor)}


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor], seeds: list[int]) -> Tensor:
    """Cross entropy of the answers' tokens, ()."""
    dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    return model(**inputs, use_cache=False).loss


def adapter_layout(model: nn.Module, beside: Callable[[Path], None] | None = None) -> Layout:
    """Checkpoints hold adapter/ as peft writes it. beside: writes what else belongs into that folder."""

    def write(folder: Path) -> None:
        if isinstance(model, PeftModel):
            model.peft_config["default"].save_pretrained(str(folder / "adapter"))
        if beside is not None:
            beside(folder / "adapter")

    return Layout(f"adapter/{ADAPTER}", adapter_key, write)
