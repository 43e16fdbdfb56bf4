"""Chat with small random models of each family: labels on the answers only, padding, strict folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaProcessor, SiglipVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ldm.mllm.model import IGNORED, Chat, ChatExample, load_mllm, load_processor
from ldm.mllm.templates import TEMPLATES, VICUNA_SYSTEM
from ldm.mllm.training import answer_loss
from tests.ldm.small_mllm import FAMILIES, SIDE, TAIL, build_small, small_folder

ANSWER = "[0.12, 0.34, 0.56, 0.78], 0.90."
UNMARKED = TEMPLATES["vicuna_v1"].replace("{% generation %}", "").replace("{% endgeneration %}", "")


def asks(answer: str | None = ANSWER) -> list[ChatExample]:
    rng = np.random.default_rng(0)
    questions = (
        f"Place the dog behind the sofa{TAIL}",
        f"Place the red cube next to the dog and on the table{TAIL}",
    )
    shapes = ((60, 110, 3), (80, 70, 3))
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in shapes]
    return [ChatExample(image, text, answer) for image, text in zip(images, questions, strict=True)]


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return build_small(request.param)


def compact(text: str) -> str:
    """Without what a tokenizer of words drops."""
    return text.replace(" ", "").replace(",", "").replace("]0.90.", "]0.90")


def test_only_answer_and_end_are_learned(small: tuple[Any, Any]):
    model, processor = small
    batch = Chat(processor).examples(asks())
    for row, ids, real in zip(
        batch["labels"], batch["input_ids"], batch["attention_mask"].bool(), strict=True
    ):
        learned = row != IGNORED
        assert not (learned & ~real).any()
        assert (row[learned] == ids[learned]).all()
        assert int(row[learned][-1]) == processor.tokenizer.eos_token_id
        assert compact(processor.tokenizer.decode(row[learned][:-1])) == compact(ANSWER)
        assert learned.nonzero().diff(dim=0).eq(1).all(), "one answer is one run of tokens"
        assert not (row == processor.image_token_id).any()
    loss = model(**batch).loss
    assert torch.isfinite(loss)
    loss.backward()


def test_the_loss_scores_the_vocabulary_at_answers_only(small: tuple[Any, Any]):
    """It is the model's own; with image tokens the other positions are most of a batch."""
    model, processor = small
    batch = Chat(processor).examples([*asks(), *asks("[0.5, 0.5, 0.6, 0.6], 0.1.")])
    plain = model(**batch).loss
    widths: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda layer, given, out: widths.append(out.shape[1])
    )
    loss = answer_loss(model, batch, [0])
    hook.remove()
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    learned = (batch["labels"] != IGNORED).any(dim=0)
    assert widths == [int(learned.sum())]
    assert widths[0] < batch["labels"].shape[1] / 2
    gradients = torch.autograd.grad(loss, list(model.lm_head.parameters()))
    expected = torch.autograd.grad(plain, list(model.lm_head.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_every_image_keeps_all_its_tokens(small: tuple[Any, Any]):
    """The model compares placeholders and features itself; cutting one placeholder off is an error."""
    model, processor = small
    batch = Chat(processor).examples(asks())
    counts = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert (counts > 0).all()
    first = int((batch["input_ids"][0] == processor.image_token_id).nonzero()[0])
    batch["input_ids"][0, first] = processor.tokenizer.eos_token_id
    with pytest.raises((ValueError, RuntimeError)):
        model(**batch)


def test_batch_equals_singles(small: tuple[Any, Any]):
    """Padding on the left changes nothing: the next token's scores of a batch are those of each alone."""
    model, processor = small
    chat = Chat(processor)
    together = model.generate(**chat.prompts(asks(None)), max_new_tokens=4, do_sample=False)
    for row, ask in enumerate(asks(None)):
        alone = model.generate(**chat.prompts([ask]), max_new_tokens=4, do_sample=False)
        assert together[row, -4:].tolist() == alone[0, -4:].tolist()


@pytest.mark.parametrize("family", ["llava", "llava_words", "llava_next"])
def test_what_a_template_marks_is_learned_as_in_one_without_marks(family: str):
    processor = build_small(family)[1]
    marked = Chat(processor, TEMPLATES["vicuna_v1"])
    asked = marked.processor.apply_chat_template(
        [marked._messages(ask, Image.fromarray(ask.image_u8)) for ask in asks()],
        chat_template=marked.template, tokenize=True, return_dict=True, return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"})  # fmt: skip
    labels = marked.examples(asks())["labels"]
    answers = torch.as_tensor(asked["assistant_masks"]).bool()
    assert answers.any()
    assert (labels != IGNORED)[answers].all()
    assert labels.tolist() == Chat(processor, UNMARKED).examples(asks())["labels"].tolist()


def test_missing_end_is_added():
    """Templates such as the converted LLaVA-1.5 weights' never write an end; a model must learn to stop."""
    processor = build_small("llava")[1]
    endless = Chat(processor, TEMPLATES["vicuna_v1"].replace("</s>", ""))
    assert not endless.ends_itself
    batch = endless.examples(asks())
    assert batch["labels"].tolist() == Chat(processor).examples(asks())["labels"].tolist()


def test_published_training_string():
    text = Chat(build_small("llava")[1]).text(
        ChatExample(np.zeros((4, 4, 3), np.uint8), "Place the cat behind the bed.", ANSWER)
    )
    assert text == f"{VICUNA_SYSTEM} USER: <image>\nPlace the cat behind the bed. ASSISTANT: {ANSWER}</s>"


def test_refused_examples():
    chat = Chat(build_small("llava")[1])
    with pytest.raises(ValueError, match="needs an answer"):
        chat.examples(asks(None))
    chat.processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Chat(chat.processor)


def test_folder_of_each_family_loads(tmp_path: Path, small: tuple[Any, Any]):
    model, processor = small
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_mllm(tmp_path, "cpu")
    batch = Chat(processor).prompts(asks(None))
    again = Chat(loaded.processor).prompts(asks(None))
    assert batch.keys() == again.keys()
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(**again).logits, model(**batch).logits)
    assert "Images" not in (tmp_path / "processor_config.json").read_text()


def test_damaged_folders_are_refused(tmp_path: Path):
    small_folder("llava", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = next(key for key in weights if "language_model" in key and "down_proj" in key)
    save_file({key: value for key, value in weights.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing keys .*down_proj"):
        load_mllm(tmp_path, "cpu")
    save_file({**weights, "model.odd": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected keys \['model.odd'\]"):
        load_mllm(tmp_path, "cpu")
    save_file({**weights, lost: weights[lost][:, :-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="mismatched keys"):
        load_mllm(tmp_path, "cpu")
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="processor"):
        load_processor(tmp_path)
    with pytest.raises(ValueError, match=r"nothing: no such model folder"):
        load_mllm(tmp_path / "nothing", "cpu")


LEFT_OUT = (
    ("patch_size",),
    ("num_additional_image_tokens",),
    ("vision_feature_select_strategy",),
    ("patch_size", "num_additional_image_tokens"),
    ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"),
)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("names", LEFT_OUT, ids="+".join)
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_what_processor_files_lack_stands_in_the_model(
    tmp_path: Path, family: str, names: tuple[str, ...], null: bool
):
    small_folder(family, tmp_path)
    whole, file = load_processor(tmp_path), tmp_path / "processor_config.json"
    values = json.loads(file.read_text())
    assert all(values.pop(name) is not None for name in names)
    file.write_text(json.dumps(values | (dict.fromkeys(names) if null else {})))
    loaded = load_processor(tmp_path)
    batch, again = (Chat(processor).prompts(asks(None)) for processor in (whole, loaded))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    with torch.no_grad():
        build_small(family)[0](**again)  # refuses another number of image tokens


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_vision_tower_without_a_class_token_has_none(tmp_path: Path, family: str):
    model = build_small(family)[0]
    small_folder(family, tmp_path)
    file = tmp_path / "processor_config.json"
    values = json.loads(file.read_text())
    del values["num_additional_image_tokens"]
    file.write_text(json.dumps(values))
    model.config.vision_config = SiglipVisionConfig(image_size=SIDE, patch_size=14)
    assert load_processor(tmp_path, model.config).num_additional_image_tokens == 0


def test_sides_of_a_wide_image_are_seen(tmp_path: Path):
    """A folder that cuts a square out of the middle, as the converted weights' does, is corrected."""
    model, processor = build_small("llava")
    model.save_pretrained(tmp_path)
    cutting = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(cutting, processor.tokenizer, chat_template=TEMPLATES["llava_hub"]).save_pretrained(
        tmp_path
    )
    plain, ours = AutoProcessor.from_pretrained(tmp_path), load_processor(tmp_path)
    wide = np.full((56, 224, 3), 128, np.uint8)
    marked = wide.copy()
    marked[:, :20] = 255
    for one, differs in ((plain, False), (ours, True)):
        pixels = [
            one.image_processor(images=[image], return_tensors="pt")["pixel_values"]
            for image in (wide, marked)
        ]
        assert pixels[0].shape == (1, 3, SIDE, SIDE)
        assert torch.equal(*pixels) != differs
    chat = Chat(ours)
    batch = chat.prompts([ChatExample(wide, "where?")])
    assert int((batch["input_ids"] == ours.image_token_id).sum()) == (SIDE // 14) ** 2
    mean = [int(255 * value) / 255 for value in ours.image_processor.image_mean]
    top = ours.image_processor(images=[wide], return_tensors="pt")["pixel_values"][0, :, 0, 0]
    wanted = (torch.tensor(mean) - torch.tensor(ours.image_processor.image_mean)) / torch.tensor(
        ours.image_processor.image_std
    )
    torch.testing.assert_close(top, wanted.to(top.dtype), atol=1e-5, rtol=0)
