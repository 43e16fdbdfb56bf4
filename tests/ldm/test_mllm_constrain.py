"""Constrained decoding: tokens spell what the tokenizer writes, answers match, probabilities are exact."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.mllm.constrain import ConstrainedChoice, Grammar, generate
from ldm.mllm.model import Chat, ChatExample, Mllm
from tests.ldm.small_mllm import TAIL, build_small, byte_level, llama_like, word_level

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
ASK = ChatExample(IMAGE, f"Place the dog behind the sofa{TAIL}")


@lru_cache(maxsize=1)
def open_grammars() -> list[Grammar]:
    return [Grammar(llama_like()), Grammar(byte_level(["<s>", "</s>"], "</s>", "<s>"))]


@given(text=st.text(alphabet='abcXYZ 0123456789.,[]{}"_:-\u00e4\u20ac', max_size=40))
def test_open_tokenizers_spell_every_text(text: str):
    for grammar in open_grammars():
        assert grammar.spelling_of(text).replace(" ", "") == text.replace(" ", "")


def test_a_tokenizer_of_words_spells_what_it_keeps():
    grammar = Grammar(word_level())
    assert grammar.spelling_of("[0.12, 0.34], 0.5.") == "[0.120.34]"
    assert grammar.spelling_of("red wolf cube") == "redcube"
    assert grammar.spell([grammar.end, *grammar.tokenizer("[").input_ids]) == "["


@pytest.mark.parametrize("family", ["llava", "llava_words", "qwen2_5_vl"])
def test_answers_match_the_expression(family: str):
    model, processor = build_small(family)
    expression = r" ?(\[[0-9]\.[0-9]{2}\]){1,3}" if family != "llava_words" else r"(\[0\.[0-9]{2}\]){1,3}"
    chat, grammar = Chat(processor), Grammar(processor.tokenizer)
    batch = chat.prompts([ASK] * 12)
    generator = torch.Generator().manual_seed(0)
    choice = ConstrainedChoice(
        grammar,
        expression,
        batch["input_ids"].shape[1],
        greedy=1,
        temperature=3.0,
        generator=generator,
    )
    answers = generate(Mllm(model, processor, Path()), batch, choice)
    assert all(re.fullmatch(expression, one.spelled) for one in answers)
    assert len({one.spelled for one in answers}) > 4


def test_probability_is_that_of_the_restricted_model():
    """Two possible answers of one token each: their probabilities sum to one and follow the logits."""
    model, processor = build_small("llava_words")
    chat, grammar = Chat(processor), Grammar(processor.tokenizer)
    batch = chat.prompts([ASK])
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    ids = [processor.tokenizer.convert_tokens_to_ids(name) for name in ("0.12", "0.50")]
    wanted = torch.log_softmax(logits[ids], dim=0)
    for name, expected in zip(("0.12", "0.50"), wanted, strict=True):
        choice = ConstrainedChoice(grammar, f"0\\.{name[2:]}", batch["input_ids"].shape[1])
        assert generate(Mllm(model, processor, Path()), batch, choice)[0].log_probability == 0.0
        both = r"0\.(12|50)"
        choice = ConstrainedChoice(grammar, both, batch["input_ids"].shape[1])
        answer = generate(Mllm(model, processor, Path()), batch, choice)[0]
        if answer.spelled == name:
            assert answer.log_probability == pytest.approx(float(expected), abs=1e-4)
            assert float(expected) == float(wanted.max())
    many = chat.prompts([ASK] * 300)
    choice = ConstrainedChoice(
        grammar, both, many["input_ids"].shape[1], greedy=0, generator=torch.Generator().manual_seed(1)
    )
    drawn = [one.spelled for one in generate(Mllm(model, processor, Path()), many, choice)]
    share = drawn.count("0.12") / len(drawn)
    assert share == pytest.approx(float(wanted[0].exp()), abs=0.09)


def test_draws_follow_their_generator_alone():
    model, processor = build_small("llava_words")
    chat, grammar = Chat(processor), Grammar(processor.tokenizer)
    batch = chat.prompts([ASK] * 3)
    form = r"\[(0\.[0-9]{2}){4}\]"

    def draw(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        choice = ConstrainedChoice(grammar, form, batch["input_ids"].shape[1], greedy=1, generator=generator)
        return [one.spelled for one in generate(Mllm(model, processor, Path()), batch, choice)]

    state = torch.get_rng_state()
    one, again, other = draw(1), draw(1), draw(2)
    assert one == again
    assert one[0] == other[0]
    assert one[1:] != other[1:]
    assert torch.equal(state, torch.get_rng_state())


ENDS = [
    ("caf\u00e9", ["caf\u00e9"]),
    ("[^<>]+", ["caf\u00e9", "na\u00efve", "\u65e5\u672c", "\U0001f600 a", "x"]),
    ("1|10|100", ["1", "10", "100"]),
    ("100|10|1", ["1", "10", "100"]),
    ("a(bc)?", ["a", "abc"]),
    ("\u00fc|\u00fcber", ["\u00fc", "\u00fcber"]),
    ("(red|red cube) ?(on|on top)", ["red on", "red cube on top"]),
    ("[0-9]{1,3}", ["1", "12", "123"]),
]


@pytest.mark.parametrize(("expression", "answers"), ENDS)
@pytest.mark.parametrize("how", ["tokens", "bytes"])
def test_every_full_match_can_be_written_and_ended(expression: str, answers: list[str], how: str):
    for grammar in open_grammars():
        rule = grammar.rule(f" ?({expression})")
        named = {text: token for token, text in grammar.spelled.items() if token != grammar.end}
        for text in answers:
            tokens = grammar.tokenizer(text, add_special_tokens=False)["input_ids"]
            if how == "bytes":
                tokens = [named[bytes([byte])] for byte in text.encode()]
            state: int | None = rule.start
            for token in tokens:
                if grammar.spelled[token] == b" " and token is tokens[0] and tokens[1:] and how == "tokens":
                    continue  # LLaMA writes a blank before a text
                assert token in rule.allowed(state), (text, grammar.spelled[token])
                state = rule.index.get_next_state(state, token)
            assert grammar.end in rule.allowed(state), text
            if how == "bytes" and len(text[-1].encode()) > 1:
                state = rule.walk(tokens[:-1])  # inside of a character
                assert state is None or grammar.end not in rule.allowed(state)


@pytest.mark.parametrize(
    ("expression", "answers"), [("1|10|100", {"1", "10", "100"}), ("a|ab|b", {"a", "ab", "b"})]
)
def test_alternatives_that_begin_alike_are_all_drawn(expression: str, answers: set[str]):
    model, processor = build_small("qwen2_5_vl")
    batch, grammar = Chat(processor).prompts([ASK] * 60), Grammar(processor.tokenizer)
    generator = torch.Generator().manual_seed(0)
    length = batch["input_ids"].shape[1]
    choice = ConstrainedChoice(
        grammar, "|".join(answers), length, greedy=0, temperature=5.0, generator=generator
    )
    assert {one.spelled for one in generate(Mllm(model, processor, Path()), batch, choice)} == set(answers)


def test_refused_forms():
    grammar = Grammar(word_level())
    with pytest.raises(ValueError, match="cannot spell this form"):
        grammar.rule("xyzzy")
    with pytest.raises(ValueError, match=r"the form allows an answer without a character: '\(red\)\?'"):
        grammar.rule(r"(red)?")
    with pytest.raises(ValueError, match="temperature must be positive"):
        ConstrainedChoice(grammar, "x", 0, temperature=0.0)
    grammar.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        Grammar(grammar.tokenizer)
