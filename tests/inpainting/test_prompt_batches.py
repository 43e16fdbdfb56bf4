"""Batches of the prompt writer: labels on answers, nothing cut but words, opacities that follow the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inpainting.models.image_to_text.collate import PromptCollate
from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.samplers import AlphaScheduleBatchSampler, WithAlphas
from inpainting.models.image_to_text.schedulers import (
    AlphaOptions,
    ConstantAlphaScheduler,
    CurriculumAlphaScheduler,
    RandomAlphaScheduler,
)
from inpainting.prompts import LLAVA_PROMPT, TEMPLATE, discover_prompt
from ldm.mllm.chat import IGNORED, Chat
from ldm.mllm.templates import TEMPLATES
from tests.inpainting.small_paintings import write_paintings
from tests.ldm.small_mllm import build_small

FAMILIES = ("llava", "llava_next")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LlavaDataset:
    folder = write_paintings(tmp_path_factory.mktemp("paintings"), {"train": 6})
    return LlavaDataset(folder, shuffle_concepts=True, masked_area_threshold=0.65)


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
        asked = PromptCollate(chat).prompts([item])["input_ids"][0]
        first = int((batch["labels"][row] != IGNORED).nonzero()[0])
        assert torch.equal(batch["input_ids"][row, :first], asked)
    bare = PromptCollate(chat, append_eos=False)(items)
    assert [said(chat, bare, row).strip() for row in (0, 1)] == [item["targets"] for item in items]
    assert torch.equal(bare["input_ids"], batch["input_ids"])


def test_a_short_answer_keeps_its_tags_and_the_image(small: tuple[Any, Chat], data: LlavaDataset):
    model, chat = small
    whole, tags = PromptCollate(chat), "<red></red><blue></blue>"
    item = {**data[2], "entity_colors": ["red", "blue"], "entity_captions": ["a red cube " * 30, "a cone"]}
    limit = whole.tokens(tags) + 20
    short = PromptCollate(chat, max_length=limit)
    text = short.target(item)
    assert short.tokens(text) <= limit < whole.tokens(whole.target(item))
    assert text.startswith("<red>a red")
    assert text.endswith("</red><blue>a cone</blue>")
    batch = short([item])
    same = [(one["input_ids"] == chat.tokenizer.image_token_id).sum() for one in (batch, whole([item]))]
    assert same[0] == same[1] > 0
    assert said(chat, batch, 0).strip() == text + "</s>"
    assert torch.isfinite(model(**batch).loss)
    with pytest.raises(ValueError, match="no room for the tags of 2 colours"):
        PromptCollate(chat, max_length=3).target(item)


def test_questions_alone(small: tuple[Any, Chat], data: LlavaDataset):
    model, chat = small
    items = [data[k] for k in (0, 2)]
    prompts = PromptCollate(chat).prompts(items)
    assert "labels" not in prompts
    assert bool(prompts["attention_mask"][:, -1].all())  # padded on the left
    assert LLAVA_PROMPT in chat.text(PromptCollate(chat, question=LLAVA_PROMPT).ask(items[0]))
    last = {chat.tokenizer.decode(row[-3:]).strip()[-1] for row in prompts["input_ids"]}
    assert last == {":"}


def sampler(count: int, scheduler: Any, **more: Any) -> AlphaScheduleBatchSampler:
    options: dict[str, Any] = {"num_processes": 2, "gradient_accumulation_steps": 2, "batch_size": 3}
    return AlphaScheduleBatchSampler(range(count), scheduler, **{**options, **more})


def test_the_step_goes_on_after_the_batches_of_all_processes():
    scheduler = CurriculumAlphaScheduler(0.0, 1.0, 0.0, num_steps=5)
    batches = list(sampler(30, scheduler))
    assert [[index for index, _ in batch] for batch in batches] == [
        [*range(k, k + 3)] for k in range(0, 30, 3)
    ]
    assert [batch[0][1][0] for batch in batches] == [0.0] * 4 + [0.25] * 4 + [0.5] * 2
    assert all(len(alphas) == 5 for batch in batches for _, alphas in batch)
    again = sampler(30, scheduler)
    again.set_epoch(1)
    assert [batch[0][1][0] for batch in again] == [0.75] * 4 + [1.0] * 4 + [1.0] * 2
    assert len(sampler(31, scheduler)) == 11
    assert [len(batch) for batch in sampler(31, scheduler, drop_last=True)] == [3] * 10
    assert len(next(iter(sampler(9, ConstantAlphaScheduler(), max_concepts=None)))[0][1]) == 10


def test_an_epoch_can_be_drawn_again():
    def drawn(epoch: int, **more: Any) -> list[list[tuple[int, list[float]]]]:
        one = sampler(20, RandomAlphaScheduler(0.2, 0.9), shuffle=True, seed=3, **more)
        one.set_epoch(epoch)
        return list(one)

    assert drawn(4) == drawn(4) != drawn(5)
    assert drawn(4, generator=torch.Generator().manual_seed(7)) != drawn(4)
    assert sorted(index for batch in drawn(4) for index, _ in batch) == list(range(20))
    alphas = np.array([alphas for batch in drawn(0) for _, alphas in batch])
    assert 0.2 <= alphas.min() < 0.35 < 0.75 < alphas.max() <= 0.9
    assert len(np.unique(alphas)) == alphas.size
    one = sampler(20, RandomAlphaScheduler(0.2, 0.9), shuffle=True, seed=3)
    assert [list(one), list(one)] == [drawn(0), drawn(1)]


def test_schedulers():
    assert ConstantAlphaScheduler(0.7).get_alphas(3) == [0.7] * 3
    curriculum = CurriculumAlphaScheduler(0.2, 0.8, 0.3)
    with pytest.raises(ValueError, match="set_num_steps"):
        curriculum.get_alphas(1)
    curriculum.set_num_steps(100)
    curriculum.set_step(50)
    values = curriculum.get_alphas(4000)
    assert curriculum.get_alphas(4000) == values
    assert (min(values), max(values)) == (0.2, 0.8)
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    curriculum.increment_step()
    assert curriculum.get_alphas(4000) != values
    curriculum.set_step(100)
    assert curriculum.get_alphas(2) == [0.8, 0.8]
    for wrong in (lambda: ConstantAlphaScheduler(1.1), lambda: RandomAlphaScheduler(-0.1, 1)):
        with pytest.raises(ValueError, match="must lie in"):
            wrong()
    with pytest.raises(ValueError, match="at least 0"):
        CurriculumAlphaScheduler(0, 1, -1)
    made = [AlphaOptions(kind, 0.1, 0.4).make(0) for kind in ("constant", "random", "curriculum")]
    assert [type(one) for one in made] == [
        ConstantAlphaScheduler, RandomAlphaScheduler, CurriculumAlphaScheduler
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must not be above"):
        AlphaOptions("random", 0.5, 0.4)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        sampler(3, ConstantAlphaScheduler(), batch_size=0)


def test_a_data_set_takes_the_opacities_of_its_epoch(data: LlavaDataset, tmp_path: Path):
    scheduler = CurriculumAlphaScheduler(0.0, 1.0, 0.0, num_steps=4)
    shown = WithAlphas(data, AlphaScheduleBatchSampler(data, scheduler, 1, 1, batch_size=3))
    assert len(shown) == 6
    assert shown.alphas[0] == [0.0] * 5
    assert shown[0]["PIL_masked_images"] == shown[0]["PIL_images"]
    shown.set_epoch(1)
    assert [shown.alphas[k][0] for k in (0, 5)] == [pytest.approx(2 / 3), 1.0]
    assert data.epoch == 1
    assert shown[5]["PIL_masked_images"] != shown[5]["PIL_images"]
    data.set_epoch(0)
