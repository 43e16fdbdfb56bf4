"""Answers of a model, free or of a given form: decoding constrained by a regular expression (outlines-core).

The expression speaks about what the tokens spell, one after the other. For most tokenizers that is the answer
itself; one whose tokens are words drops blanks and commas.

Legend: b rows of a batch, v vocabulary.
"""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from outlines_core import Index, Vocabulary
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ldm.device import check_finite
from ldm.mllm.model import Mllm, end_token

LANGUAGE_MODEL = "language model"  # as errors call it
PREFIX = "past_key_values"  # transformers' name of what is known of the first tokens
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Rule:
    def __init__(self, index: Index, tokens: dict[bytes, list[int]]) -> None:
        self.index, self.start = index, int(index.get_initial_state())
        seen = {token for edges in index.get_transitions().values() for token in edges}
        # A token may be spelled like another one; the pairs are kept, so that a narrower rule has both.
        matched = {text: [token for token in named if token in seen] for text, named in tokens.items()}
        self.used = {text: named for text, named in matched.items() if named}
        self.allowed: Callable[[int], list[int]] = cache(lambda s: sorted(index.get_allowed_tokens(s) or []))

    def walk(self, tokens: Sequence[int]) -> int | None:
        """The state after tokens, None if they leave the expression."""
        state: int | None = self.start
        for token in tokens:
            state = None if state is None else self.index.get_next_state(state, token)
        return state


class Grammar:
    """The tokens of one tokenizer as texts, and the expressions compiled against them.

    Knows byte-level BPE (GPT-2's alphabet), word-start marks with byte fallback (sentencepiece, LLaMA), and
    tokens that are plain words. Special tokens have no text. most_rules: compiled expressions that are kept
    """

    def __init__(self, tokenizer: Any, most_rules: int = 4096) -> None:
        self.tokenizer, self.end, self.most_rules = tokenizer, end_token(tokenizer), most_rules
        self._rules: dict[str, Rule] = {}
        special = {int(token) for token in tokenizer.all_special_ids}
        special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = (None if backend is None else json.loads(backend.to_str())["decoder"]) or {}
        kinds = [step.get("type") for step in (decoder, *decoder.get("decoders", ()))]
        alphabet = bytes_to_unicode().items() if "ByteLevel" in kinds else ()
        bytes_of = {letter: byte for byte, letter in alphabet}
        self.spelled: dict[int, bytes] = {}  # token -> the bytes that it adds to a text
        self._tokens: dict[bytes, list[int]] = {}
        for name, token in tokenizer.get_vocab().items():
            if token in special:
                continue
            if bytes_of and all(letter in bytes_of for letter in name):
                text = bytes(bytes_of[letter] for letter in name)
            elif match := _BYTE.fullmatch(name):
                text = bytes([int(match[1], 16)])
            else:
                text = name.replace("\u2581", " ").encode()
            self.spelled[token] = text
            if text and token != self.end:
                self._tokens.setdefault(text, []).append(token)

    def rule(self, pattern: str, within: Rule | None = None) -> Rule:
        """The compiled expression. within: a wider rule, whose tokens are all that need to be looked at."""
        if pattern not in self._rules:
            tokens = self._tokens if within is None else within.used
            if len(self._rules) >= self.most_rules:
                self._rules.clear()
            # Anchored: else an alternative ends the search for longer ones, and tokens that end inside of a
            # character are lost behind a complete answer (findings/answers_cut_short.sh).
            whole = rf"(?:{pattern})\z"
            try:
                self._rules[pattern] = Rule(Index(whole, Vocabulary(self.end, tokens)), tokens)
            except ValueError as error:
                if "universal start" in str(error):  # an end at once would depend on what stands before it
                    raise ValueError(f"the form allows an answer without a character: {pattern!r}") from None
                raise ValueError(f"the tokenizer cannot spell this form of answer: {error}") from error
        return self._rules[pattern]

    def spell(self, tokens: Sequence[int]) -> str:
        """What tokens spell; special ones spell nothing."""
        return b"".join(self.spelled.get(token, b"") for token in tokens).decode("utf-8", "replace")

    def spelling_of(self, text: str) -> str:
        """What the tokens of a text spell: without what the tokenizer drops, and without blanks around it."""
        return self.spell(self.tokenizer(text, add_special_tokens=False)["input_ids"]).strip()


class ConstrainedChoice(LogitsProcessor):
    """Chooses every next token among those that the form allows; `generate` follows it greedily.

    forms: one, or a list of one per row: an expression of what an answer's tokens spell (`Grammar.spell`), or
        an object that gives it by pattern(); by family() a wider one that forms of one kind share, of which
        only the tokens are looked at; by narrow(text) a narrower one of the answers that begin so, where
        there is one; by crosses(text) whether a text went past the point from which the narrower one holds
    prompt: tokens before the answer. The first `greedy` rows take the most probable token (None: all); the
        others draw at `temperature` with `generator`
    log_probability (b,): of each row's answer, at temperature 1, under the model restricted to the form.
    """

    def __init__(
        self,
        grammar: Grammar,
        forms: Any,
        prompt: int,
        *,
        greedy: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.grammar, self.forms, self.prompt = grammar, forms, prompt
        self.greedy, self.temperature, self.generator = greedy, temperature, generator
        self.log_probability: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (b, prompt + answer so far), scores (b, v) -> (b, v), -inf but for the chosen token."""
        answers = input_ids[:, self.prompt :].tolist()
        if not self.log_probability:
            self.log_probability = [0.0] * len(answers)
        chosen = [self._choose(row, tokens, scores[row]) for row, tokens in enumerate(answers)]
        out = torch.full_like(scores, float("-inf"))
        return out.scatter_(1, torch.tensor(chosen, device=scores.device).unsqueeze(1), 0.0)

    def _choose(self, row: int, tokens: list[int], scores: Tensor) -> int:
        if self.grammar.end in tokens:
            return self.grammar.end
        allowed = self.allowed(row, tokens)
        log_p = torch.log_softmax(scores[allowed.to(scores.device)].float().cpu(), dim=0)
        check_finite(log_p.max(), LANGUAGE_MODEL)
        if self.greedy is None or row < self.greedy:
            best = int(log_p.argmax())
        else:
            weights = torch.softmax(log_p / self.temperature, dim=0)
            best = int(torch.multinomial(weights, 1, generator=self.generator))
        self.log_probability[row] += float(log_p[best])
        return int(allowed[best])

    def allowed(self, row: int, tokens: list[int]) -> Tensor:
        """The tokens (n,) that may follow those of a row's answer."""
        form: Any = self.forms[row] if isinstance(self.forms, list) else self.forms
        text, plain = self.grammar.spell(tokens), isinstance(form, str)
        family = None if plain else self.grammar.rule(form.family())
        wide = self.grammar.rule(form if plain else form.pattern(), within=family)
        if not plain and (narrower := form.narrow(text)) is not None:
            rule = self.grammar.rule(narrower, within=wide)
            if (state := rule.walk(tokens)) is not None:
                return torch.tensor(rule.allowed(state))
        state = wide.walk(tokens)
        found = [] if state is None else wide.allowed(state)
        if not found:
            raise ValueError(f"no token continues {text!r}")
        # A token may spell more than the part after which the narrower expression holds.
        good = [token for token in found if plain or not form.crosses(text + self.grammar.spell([token]))]
        return torch.tensor(good or found)


class FiniteScores(LogitsProcessor):
    """Lets every token be chosen; ValueError where the largest score is not a number."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (b, t), scores (b, v) -> scores."""
        check_finite(scores.amax(dim=-1), LANGUAGE_MODEL)
        return scores


@dataclass(frozen=True)
class Answer:
    """text: as the tokenizer decodes it. spelled: the texts of its tokens. log_probability: see constrain."""

    text: str
    spelled: str
    log_probability: float


def to_device(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tensors on the device, floating ones as dtype."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    kinds = {key: dtype if value.is_floating_point() else None for key, value in tensors.items()}
    return {key: value.to(device, kinds[key]) for key, value in tensors.items()}


class SharedPrompt:
    """One prompt (`Chat.prompts`) of several answers: the model reads it once, but for its last token."""

    def __init__(self, mllm: Mllm, batch: Mapping[str, Any]) -> None:
        inputs = to_device(batch, mllm.device, mllm.dtype)
        self.length, shape = inputs["input_ids"].shape[1], inputs["input_ids"].shape
        before = {key: value[:, :-1] if value.shape == shape else value for key, value in inputs.items()}
        with torch.no_grad():
            output = mllm.model(**before, use_cache=True, logits_to_keep=1)
        check_finite(output.logits, LANGUAGE_MODEL)
        self.texts = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        self.prefix = output.past_key_values  # transformers' cache of keys and values

    def rows(self, count: int) -> dict[str, Any]:
        prefix = copy.deepcopy(self.prefix)
        prefix.batch_repeat_interleave(count)
        return {PREFIX: prefix, **{key: value.repeat(count, 1) for key, value in self.texts.items()}}


def generate(
    mllm: Mllm, batch: Mapping[str, Any], choice: ConstrainedChoice | None = None, longest: int = 128
) -> list[Answer]:
    """Let the model answer a batch of prompts, greedily; one Answer per row.

    choice: chooses the tokens instead, within a form. Without it spelled is the text, log_probability nan.
    """
    model: Any = mllm.model
    tokenizer, inputs = mllm.processor.tokenizer, to_device(batch, mllm.device, mllm.dtype)
    inputs |= {PREFIX: batch[PREFIX]} if PREFIX in batch else {}
    end = end_token(tokenizer)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rules = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=end, pad_token_id=pad)
    with torch.no_grad():
        rows = model.generate(**inputs, generation_config=rules, logits_processor=[choice or FiniteScores()])
    answers = rows[:, inputs["input_ids"].shape[1] :].tolist()
    texts = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    if choice is None:
        return [Answer(text, text, math.nan) for text in texts]
    spelled = [choice.grammar.spell(tokens).strip() for tokens in answers]
    return [Answer(*parts) for parts in zip(texts, spelled, choice.log_probability, strict=True)]
