"""The folder of a small locator: weights in half precision, tokenizer, processor, configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES
from ldm.checkpoints import folder_written_whole
from ldm.settings.config import write_config
from llava_bifrost.locator import CONFIG, LocatorConfig
from tiny.llava import SmallConfig, create_llava, make_processor, save_llava
from tiny.locator.tokenizer import FURNITURE, NUMBERS, VOCABULARY, make_tokenizer

NOTICE = (
    "This is the small locator, trained on rendered scenes of plain solids only: it knows their names and "
    "square images of rooms, nothing else. For photographs: a model trained with scripts/train_llava.sh."
)


def known_names() -> tuple[str, ...]:
    """What the small locator can be asked about: parts of names, in the order of a name."""
    patterns = dict.fromkeys(word for name in PATTERN_WORDS.values() for word in name.split())
    return (*patterns, *COLOURS, *SHAPES, *FURNITURE)


def save_locator(
    model: LlavaForConditionalGeneration, config: SmallConfig, folder: Path, manifest: dict[str, Any]
) -> None:
    """Write the whole folder, or nothing."""
    with folder_written_whole(folder) as partial:
        save_llava(model, make_processor(config, make_tokenizer()), partial, longest=16)
        answers = LocatorConfig(codec="square", decimals=2, names=known_names(), notice=NOTICE)
        write_config(partial / CONFIG, answers)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def create_locator(config: SmallConfig, seed: int) -> LlavaForConditionalGeneration:
    """An untrained locator; the same seed gives the same weights and leaves the global state alone."""
    return create_llava(config, VOCABULARY, seed, NUMBERS)
