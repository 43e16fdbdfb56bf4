"""The prompt writer: one closed prompt per mask whatever model and tokenizer; cards, adapters, errors."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inpainting import prompts
from inpainting.models.image_to_text.settings import Decoding
from inpainting.models.image_to_text.writer import PromptWriter, find_files
from inpainting.prompts import (
    COLORS,
    CONFIG_FILE,
    PrompterConfig,
    colors_of_masks,
    pattern_of,
    queries_for,
    target_text,
)
from ldm.mllm.constrain import Grammar
from ldm.mllm.model import Chat, ChatExample, Mllm, load_mllm
from ldm.settings.config import write_config
from tests.ldm import small_mllm
from tests.ldm.small_mllm import build_small, small_folder

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "smolvlm")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
SHORT = Decoding(longest=6)


def mask_at(k: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[5 * k : 5 * k + 12, 6 * k : 6 * k + 10 + k] = True
    return mask


MASKS = [mask_at(k) for k in range(10)]


@pytest.fixture(scope="session")
def writers() -> dict[str, PromptWriter]:
    """An untrained model of every family, in memory."""
    return {name: in_memory(*build_small(name)) for name in FAMILIES}


def in_memory(
    model: torch.nn.Module, processor: object, config: PrompterConfig | None = None
) -> PromptWriter:
    return PromptWriter(Mllm(model, processor, Path("memory")), config or PrompterConfig())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_mask_gets_a_prompt(writers: dict[str, PromptWriter], name: str):
    """In any family, for different numbers of masks in one batch; batch = singles; seeds repeat."""
    images, masks = [IMAGE, IMAGE[:50, :40], IMAGE], [MASKS[:2], [mask_at(1, (50, 40))], MASKS[:3]]
    found = writers[name].write(images, masks, SHORT, batch=3)
    assert [len(one) for one in found] == [2, 1, 3]
    for text in [text for one in found for text in one]:
        assert text.strip() == text
        assert text
        assert not re.search(r"[<>\n]", text)
    singles = [writers[name].write([a], [np.stack(b)], SHORT)[0] for a, b in zip(images, masks, strict=True)]
    assert singles == found
    warm = [Decoding(temperature=1.5, seed=seed, longest=6) for seed in (1, 1, 2)]
    first, again, other = (writers[name].write(images[1:2], masks[1:2], one) for one in warm)
    assert first == again != other


def test_answers_have_the_asked_form(writers: dict[str, PromptWriter]):
    """All tags in order and closed, at most `longest` tokens between them; ten colours too."""
    writer = writers["llava"]
    query = queries_for(writer.config, IMAGE, MASKS, [""] * 10)[0]
    answer = writer.answer([query], SHORT)[0]
    assert re.fullmatch(pattern_of(query.tags), answer)
    tokenizer = writer.mllm.processor.tokenizer
    for tag in query.tags:
        between = answer.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert len(tokenizer(between, add_special_tokens=False)["input_ids"]) <= 6 + 4
    assert query.tags == tuple(list(COLORS)[::-1])


def test_published_decoding(writers: dict[str, PromptWriter]):
    """An untrained model writes no tags; a missing one is empty."""
    short = Decoding(constrained=False, longest=5)
    assert writers["llava_next"].write([IMAGE], [MASKS[:2]], short) == [["", ""]]
    query = queries_for(PrompterConfig(), IMAGE, MASKS[:3], [""] * 3)[0]
    said = "<blue>a tree</blue><green>a man<red> a dog </red><red>no</red>"
    assert query.read(said) == {0: "a tree", 1: "", 2: "a dog"}
    other = dataclasses.replace(query, tags=("red", "green"))
    together = writers["llava"].answer([query, other, query], short)
    assert together[0] == together[2] == writers["llava"].answer([query], short)[0]
    with pytest.raises(ValueError, match="temperature must be 0"):
        Decoding(constrained=False, temperature=0.5)


def test_given_prompts_are_kept_and_told(writers: dict[str, PromptWriter], caplog: pytest.LogCaptureFixture):
    """They come first in the question, with their text in the answer, and change what is written."""
    given = ["", "a (red) cube, 5*3", ""]
    assert colors_of_masks(PrompterConfig(), given) == ["green", "blue", "red"]
    plain, told, other = (
        writers["llava"].write([IMAGE], [MASKS[:3]], SHORT, given=[known])[0]
        for known in (["", "", ""], given, ["", "a blue cone", ""])
    )
    assert told[1] == given[1]
    assert told != other
    assert told[0] != plain[0] or told[2] != plain[2]
    assert writers["llava"].write([IMAGE], [MASKS[:1]], given=[["kept"]]) == [["kept"]]
    with pytest.raises(ValueError, match="1 prompts are given for 2 masks"):
        writers["llava"].write([IMAGE], [MASKS[:2]], given=[["one"]])


def of_words(*more: str) -> PreTrainedTokenizerFast:
    """One word per token, blanks are dropped."""
    words = ["a", "red", "blue", "striped", "cube", "cone", "USER:", "ASSISTANT:", *more]
    names = ["<unk>", "<s>", "</s>", "<image>", "<pad>", *dict.fromkeys(words)]
    raw = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    pieces = Regex(r"</?[a-z]+>|</|[<>]|[A-Za-z]+:?" if "<red>" in more else r"</|[<>]|[A-Za-z]+:?")
    raw.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    raw.add_special_tokens([AddedToken(name, special=True) for name in names[:5]])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


@pytest.mark.parametrize("more", [("<red>", "</red>", "<green>", "</green>"), ("<", "/", "</", ">", "green")])
def test_tokenizers_of_words(more: tuple[str, ...], caplog: pytest.LogCaptureFixture):
    """Tags of one token or of several; words keep the blanks between them; unknown words are left open."""
    torch.manual_seed(0)
    writer = in_memory(*small_mllm._llava(of_words(*more)))
    found = writer.write([IMAGE], [MASKS[:2]], SHORT)[0]
    known = {"a", "red", "blue", "striped", "cube", "cone", "USER:", "ASSISTANT:", "green", "/"}
    assert all(set(text.split()) <= known and 1 <= len(text.split()) <= 6 for text in found)
    cone = writer.write([IMAGE], [MASKS[:2]], SHORT, given=[["a striped cone", ""]])[0]
    assert cone[0] == "a striped cone"
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        assert writer.write([IMAGE], [MASKS[:2]], SHORT, given=[["a zebra", ""]])[0][0] == "a zebra"
    assert "cannot read the given prompt 'a zebra'" in caplog.text
    with pytest.raises(ValueError, match="cannot spell this form of answer"):
        Grammar(writer.mllm.processor.tokenizer).rule(pattern_of(["purple"]))


def test_other_questions(writers: dict[str, PromptWriter]):
    """A model of one mask sees it alone in gray; one without adapter answers freely, in one line."""
    gray, plain = (PrompterConfig(question=name) for name in ("gray", "plain"))
    for card, tags in ((gray, ("gray",)), (plain, ())):
        queries = queries_for(card, IMAGE, MASKS, ["", "known", *[""] * 8])
        assert [query.masks[0] for query in queries] == [0, *range(2, 10)]
        assert {query.tags for query in queries} == {tags}
        assert (queries[1].image_u8[MASKS[2]] == 128).all()
        assert np.array_equal(queries[1].image_u8[~MASKS[2]], IMAGE[~MASKS[2]])
        writer = PromptWriter(writers["llava"].mllm, card)
        assert all(len(one) > 0 for one in writer.write([IMAGE], [[*MASKS, mask_at(3)]], SHORT)[0])
    assert "colors: gray." in queries_for(gray, IMAGE, MASKS[:1], [""])[0].question
    assert queries_for(plain, IMAGE, MASKS[:1], [""])[0].question == prompts.LLAVA_PROMPT


def test_folders_cards_and_adapters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    base = small_folder("llava_next", tmp_path / "base")
    write_config(base / CONFIG_FILE, PrompterConfig(colors=("red", "blue"), notice="two colours only"))
    with caplog.at_level(logging.INFO):
        writer = PromptWriter.load(base, device="cpu")
    assert "two colours only" in caplog.text
    with pytest.raises(ValueError, match=r"knows 2 colours \(red, blue\), got 3 masks"):
        writer.write([IMAGE], [MASKS[:3]])
    assert colors_of_masks(writer.config, ["", ""]) == ["blue", "red"]
    model = load_mllm(base, "cpu").model
    layers = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    layers = [name for name in layers if "language_model" in name]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    alone = PromptWriter.load(tmp_path / "adapter", device="cpu")
    both = PromptWriter.load(base, tmp_path / "adapter", device="cpu")
    texts = [one.write([IMAGE], [MASKS[:2]], SHORT) for one in (writer, alone, both)]
    assert texts[1] == texts[2] != texts[0]
    assert set(alone.weights()) == {"model", "adapter"}
    adapted.peft_config["default"].base_model_name_or_path = "somebody/base"
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    assert find_files(tmp_path / "adapter").model == base, "the registry's folder of that name"


def test_what_does_not_fit_is_refused(tmp_path: Path, writers: dict[str, PromptWriter]):
    writer = writers["llava"]
    for masks, message in (
        ([], "no mask given"),
        ([MASKS[0], MASKS[1] & False], "mask 2 is empty"),
        ([MASKS[0][:30]], r"mask 1 must be bool .* \(30, 80\), its image \(60, 80\)"),
        ([MASKS[0].astype(np.uint8)], "mask 1 must be bool"),
        ([*MASKS, MASKS[0]], "knows 10 colours .* got 11 masks"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write([IMAGE], [masks])
    with pytest.raises(ValueError, match="no prompt writer there"):
        PromptWriter.load(tmp_path)
    with pytest.raises(ValueError, match="absent: no such folder"):
        PromptWriter.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="no adapter there"):
        PromptWriter.load(small_folder("llava", tmp_path / "model"), tmp_path)


def test_the_question_s_tokens_are_those_of_training(writers: dict[str, PromptWriter]):
    """What the writer asks begins exactly like an example of training."""
    writer = writers["llava_next"]
    query = queries_for(writer.config, IMAGE, MASKS[:2], ["", ""])[0]
    asked = writer.chat.prompts([ChatExample(query.image_u8, query.question)])["input_ids"][0]
    example = Chat(writer.mllm.processor, writer.chat.template).examples(
        [ChatExample(query.image_u8, query.question, target_text([("green", "a"), ("red", "b")]))]
    )
    assert torch.equal(example["input_ids"][0][: len(asked)], asked)
    assert (example["labels"][0][: len(asked)] == -100).all()
