"""Batches of the prompt writer: labels on answers, nothing cut but words, opacities that follow the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from inpainting.models.image_to_text.dataset import LlavaDataset, PromptCollate, WithAlphas
from inpainting.models.image_to_text.settings import AlphaOptions, LlavaOptions
from inpainting.prompts import LLAVA_PROMPT, TEMPLATE, discover_prompt
from ldm.mllm.model import IGNORED, Chat
from ldm.mllm.templates import TEMPLATES
from tests.inpainting.small_paintings import write_paintings
from tests.ldm.small_mllm import build_small

FAMILIES = ("llava", "llava_next")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LlavaDataset:
    folder = write_paintings(tmp_path_factory.mktemp("paintings"), {"train": 6})
    return LlavaDataset(LlavaOptions(folder))


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest) -> tuple[Any, Chat]:
    """(model, chat) with the published conversation."""
    model, processor = build_small(request.param)
    return model, Chat(processor, TEMPLATES[TEMPLATE])


def said(chat: Chat, batch: dict[str, Any], row: int) -> str:
    labels = batch["labels"][row]
    return chat.tokenizer.decode(labels[labels != IGNORED], clean_up_tokenization_spaces=False)


def test_labels_are_the_answer_and_its_end(small: tuple[Any, Chat], data: LlavaDataset):
    model, chat = small
    items = [data[k] for k in (0, 2)]
    batch = PromptCollate(chat)(items)
    assert [said(chat, batch, row).strip() for row in (0, 1)] == [item["targets"] + "</s>" for item in items]
    assert [chat.text(chat_ask) for chat_ask in map(PromptCollate(chat).ask, items)] == [
        discover_prompt(item["entity_colors"]) for item in items
    ]
    images = (batch["input_ids"] == chat.tokenizer.image_token_id).sum(1)
    assert int(images.min()) >= 16  # expanded, and as many as the model makes features
    assert torch.isfinite(model(**batch).loss)
    for row, item in enumerate(items):  # the first token to learn is the first one to say
        asked = chat.prompts([PromptCollate(chat).ask(item)])["input_ids"][0]
        first = int((batch["labels"][row] != IGNORED).nonzero()[0])
        assert torch.equal(batch["input_ids"][row, :first], asked)
    bare = PromptCollate(chat, append_eos=False)(items)
    assert [said(chat, bare, row).strip() for row in (0, 1)] == [item["targets"] for item in items]
    assert torch.equal(bare["input_ids"], batch["input_ids"])


def test_a_short_answer_keeps_its_tags_and_the_image(small: tuple[Any, Chat], data: LlavaDataset):
    model, chat = small
    whole, tags = PromptCollate(chat), "<red></red><blue></blue>"
    item = {**data[2], "entity_colors": ["red", "blue"], "entity_captions": ["a red cube " * 30, "a cone"]}

    def tokens(text: str) -> int:
        return len(chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    limit = tokens(tags) + 20
    short = PromptCollate(chat, max_length=limit)
    text = short.target(item)
    assert tokens(text) <= limit < tokens(whole.target(item))
    assert text.startswith("<red>a red")
    assert text.endswith("</red><blue>a cone</blue>")
    batch = short([item])
    same = [(one["input_ids"] == chat.tokenizer.image_token_id).sum() for one in (batch, whole([item]))]
    assert same[0] == same[1] > 0
    assert said(chat, batch, 0).strip() == text + "</s>"
    assert torch.isfinite(model(**batch).loss)
    with pytest.raises(ValueError, match="no room for the tags of 2 colours"):
        PromptCollate(chat, max_length=3).target(item)


def test_the_question_may_be_another(small: tuple[Any, Chat], data: LlavaDataset):
    _, chat = small
    assert LLAVA_PROMPT in chat.text(PromptCollate(chat, question=LLAVA_PROMPT).ask(data[0]))


def shown(data: LlavaDataset, options: AlphaOptions, **more: Any) -> WithAlphas:
    """Batches of one image, in order."""
    return WithAlphas(data, options, lambda epoch: [[k] for k in range(len(data))], **{"steps": 5, **more})


def test_the_step_goes_on_after_the_batches_of_all_processes(data: LlavaDataset):
    rising = shown(data, AlphaOptions("curriculum", 0.0, 1.0, 0.0), per_step=2)
    assert len(rising) == 6
    assert [rising.alphas(k)[0] for k in range(6)] == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
    assert len(rising.alphas(0)) == 5
    assert rising[0]["PIL_masked_images"] == rising[0]["PIL_images"]
    rising.set_epoch(1)
    assert [rising.alphas(k)[0] for k in range(6)] == [0.75, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert data.epoch == 1
    assert rising[5]["PIL_masked_images"] != rising[5]["PIL_images"]
    uneven = shown(data, AlphaOptions("curriculum", 0.0, 1.0, 0.0), per_step=4)  # the last step is smaller
    uneven.set_epoch(1)
    assert [uneven.step_of[k] for k in range(6)] == [2, 2, 2, 2, 3, 3]
    data.set_epoch(0)


def test_an_epoch_can_be_drawn_again(data: LlavaDataset):
    def drawn(epoch: int, seed: int = 3) -> list[list[float]]:
        images = shown(data, AlphaOptions("random", 0.2, 0.9), seed=seed)
        images.set_epoch(epoch)
        return [images.alphas(k) for k in range(len(images))]

    assert drawn(4) == drawn(4) != drawn(5)
    assert drawn(4, seed=7) != drawn(4)
    alphas = np.array(drawn(0))
    assert 0.2 <= alphas.min() < 0.35 < 0.75 < alphas.max() <= 0.9
    assert len(np.unique(alphas)) == alphas.size
    data.set_epoch(0)


def test_opacities_of_a_step():
    def alphas(options: AlphaOptions, step: int, size: int) -> list[float]:
        return options.alphas(step, 100, size, np.random.default_rng(0))

    assert alphas(AlphaOptions(start=0.7), 3, 3) == [0.7] * 3
    curriculum = AlphaOptions("curriculum", 0.2, 0.8, 0.3)
    values = alphas(curriculum, 50, 4000)
    assert (min(values), max(values)) == (0.2, 0.8)
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    assert alphas(curriculum, 51, 4000) != values
    assert alphas(curriculum, 100, 2) == [0.8, 0.8]
    for wrong in ({"start": 1.1}, {"kind": "random", "start": -0.1}, {"deviation": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            AlphaOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be above"):
        AlphaOptions("random", 0.5, 0.4)
