"""A new small locator: a small LLaVA with the words of the locator."""

from __future__ import annotations

from transformers import LlavaForConditionalGeneration

from ldm.small_llava import SmallConfig, create_llava
from llava_bifrost.small.vocabulary import NUMBERS, VOCABULARY


def create_locator(config: SmallConfig, seed: int) -> LlavaForConditionalGeneration:
    """An untrained locator; the same seed gives the same weights and leaves the global state alone."""
    return create_llava(config, VOCABULARY, seed, NUMBERS)
