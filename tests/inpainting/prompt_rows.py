"""Predicted prompts of random words, and a small RoBERTa that knows these words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from inpainting.models.image_to_text.evaluation.predictions import Prediction

WORDS = (
    *("a", "the", "red", "green", "old", "cat", "dog", "man", "woman"),
    *("on", "under", "behind", "mat", "hill", "sits", "sleeps", "two"),
)


def row(number: int, said: str, truth: str = "a cat on a mat", **more: object) -> Prediction:
    """Region `number` of an image of three regions, the third of them the last."""
    base = Prediction(f"image_{number // 3}", f"mask_{number % 3}", said, truth, "cat", number % 3 == 2)
    return replace(base, **more)  # type: ignore[arg-type]


def drawn(count: int, seed: int, shortest: int = 0) -> list[Prediction]:
    """Rows of random words; a prediction is its caption, cut somewhere, every fifth word another one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        truth = rng.choice(WORDS, rng.integers(max(shortest, 1), 14))
        said = np.where(rng.random(len(truth)) < 0.2, rng.choice(WORDS, len(truth)), truth)
        said = said[: rng.integers(shortest, len(said) + 1)]
        rows.append(row(number, " ".join(said), " ".join(truth)))
    return rows


def write_roberta(folder: Path) -> Path:
    """Random weights, and a tokenizer of whole words."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=20, **names).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(WORDS) + 4, max_position_embeddings=24, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RobertaModel(config).save_pretrained(folder)
    return folder
