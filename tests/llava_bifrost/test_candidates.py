"""Several candidates of one question: image and prompt are read once, answers are what they were before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.mllm.constrain import ConstrainedChoice, SharedPrompt, generate
from ldm.mllm.model import ChatExample, Mllm
from llava_bifrost.language.codec import FAMILIES as CODECS
from llava_bifrost.locator import AT_ONCE, Locator, LocatorConfig
from tests.ldm.small_mllm import FAMILIES, TAIL, build_small

IMAGE = np.random.default_rng(1).integers(0, 255, (70, 90, 3), dtype=np.uint8)
ORDER = "Place the dog behind the sofa"


def small_locator(family: str) -> Locator:
    model, processor = build_small(family)
    decimals = 2 if family == "llava_words" else 3
    codec = CODECS.get(family.removesuffix("_words"), "bifrost")
    return Locator(Mllm(model, processor, Path()), LocatorConfig(codec=codec, decimals=decimals))


def seen_by(locator: Locator) -> tuple[list[int], list[tuple[int, int]]]:
    """Filled while the locator works: calls of the vision tower; rows and tokens of each language step."""
    model, images, steps = locator.mllm.model, [], []
    names = ("vision_tower", "visual", "vision_model")
    tower: Any = next(module for name, module in model.named_modules() if name.split(".")[-1] in names)
    tower.register_forward_hook(lambda *call: images.append(1))
    text: Any = getattr(model.model, "language_model", None) or model.model.text_model
    text.register_forward_hook(lambda *call: steps.append(tuple(call[-1].last_hidden_state.shape[:2])))
    return images, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prompt_gives_the_answers_of_whole_prompts(family: str):
    """Greedy and drawn ones, in one batch, with the draws of the same seed."""
    locator = small_locator(family)
    batch = locator.chat.prompts([ChatExample(IMAGE, f"{ORDER}{TAIL}")] * 5)
    form = locator.codec.form(locator.frame(IMAGE)).spelled_by(locator.grammar)
    shared = SharedPrompt(locator.mllm, locator.chat.prompts([ChatExample(IMAGE, f"{ORDER}{TAIL}")]))
    answers = []
    for inputs in (batch, shared.rows(5), shared.rows(5)):  # the prefix stays as it is
        choice = ConstrainedChoice(
            locator.grammar, form, shared.length, greedy=1, generator=torch.Generator().manual_seed(4)
        )
        answers.append(generate(locator.mllm, inputs, choice))
    for whole, one, again in zip(*answers, strict=True):
        assert one.text == again.text == whole.text
        assert one.log_probability == pytest.approx(whole.log_probability, abs=1e-3)
    assert len({answer.text for answer in answers[0]}) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_image_and_prompt_are_read_once(family: str):
    locator = small_locator(family)
    images, steps = seen_by(locator)
    found = locator.locate(IMAGE, ORDER, 16, seed=2, anchors={})
    assert len(found) > 8
    assert len(images) == 1
    rows, tokens = zip(*steps, strict=True)
    assert (rows[0], sum(count > 1 for count in tokens)) == (1, 1)
    assert rows[1] == 16


@pytest.mark.parametrize("candidates", [2, 17, 40])
def test_answers_are_written_in_batches(candidates: int):
    locator = small_locator("llava_words")
    _, steps = seen_by(locator)
    found = locator.locate(IMAGE, ORDER, candidates, seed=1, anchors={})
    assert 1 < len(found) <= candidates
    assert max(rows for rows, _ in steps) == min(candidates, AT_ONCE)
    greedy = locator.locate(IMAGE, ORDER)[0]
    assert greedy.text in {one.text for one in found}
    assert [one.text for one in locator.locate(IMAGE, ORDER, candidates, seed=1, anchors={})] == [
        one.text for one in found
    ]


def test_a_prompt_without_numbers_is_refused():
    locator = small_locator("llava")
    with torch.no_grad():
        locator.mllm.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="language model gave NaN"):
        SharedPrompt(locator.mllm, locator.chat.prompts([ChatExample(IMAGE, "Place")]))
    for wrong in (IMAGE[..., 0], IMAGE.astype(np.float32), IMAGE[..., :2]):
        with pytest.raises(ValueError, match="an image is RGB uint8"):
            locator.answer([wrong], [ORDER])
