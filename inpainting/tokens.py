"""Prompts of several regions -> token sequences, and which region owns each token.

joint     one sequence for all prompts of an image, as published: BOS, prompt 1, prompt 2 ..., EOS, padding.
          They share 75 tokens fairly, and each prompt's embedding has seen the prompts before it.
separate  one sequence per prompt: 75 tokens each, and no prompt knows of another.

Legend: s sequences, l tokens of one sequence (77 in CLIP), t tokens of an image = s l, b images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

ENCODINGS = ("joint", "separate")
SHARED = 0  # owner of a token that every pixel may read; region k owns tokens marked k + 1
HIDDEN = -1  # owner of filling between images of one batch, which no pixel reads
SEPARATOR = ".</w>"  # after each prompt where no region map tells them apart
LONGEST_WINDOW = 4096  # a tokenizer that claims more has no length of its own


@dataclass(frozen=True)
class TruncatedPrompt:
    """A prompt that did not fit: what the model reads and what it does not."""

    index: int
    kept: str
    lost: str


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """The token sequences of one image.

    input_ids: (s, l) int64
    owners:    (t,) int64, 0 = shared, k + 1 = only for region k
    cuts:      prompts that were shortened
    """

    input_ids: Tensor
    owners: Tensor
    cuts: tuple[TruncatedPrompt, ...] = ()


def plan_tokens(
    texts: Sequence[str], tokenizer: CLIPTokenizer, *, encoding: str = "joint", regions: bool = True
) -> TokenPlan:
    """Lay out the prompts of one image.

    regions: False gives the form for a model without region maps: a period after each prompt and every
             token shared (published: the runs without rectified attention); always one joint sequence
    """
    if not texts:
        raise ValueError("at least one prompt is needed, got an empty list")
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; allowed: {', '.join(ENCODINGS)}")
    contents = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    window = window_of(tokenizer)
    if encoding == "separate" and regions:
        return _separate(contents, tokenizer, window)
    return _joint(contents, tokenizer, window, [] if regions else [separator_id(tokenizer)], regions)


def window_of(tokenizer: CLIPTokenizer) -> int:
    """Tokens of one sequence, BOS and EOS included."""
    window = tokenizer.model_max_length
    if window > LONGEST_WINDOW:
        raise ValueError("the tokenizer has no length: set model_max_length in its tokenizer_config.json")
    return window


def separator_id(tokenizer: CLIPTokenizer) -> int:
    """The token of a period that ends a word."""
    found = tokenizer.get_vocab().get(SEPARATOR)
    if found is None:
        raise ValueError(f"the tokenizer's vocabulary lacks {SEPARATOR!r}, which separates joined prompts")
    return found


def longest_first_lengths(lengths: Sequence[int], budget: int) -> list[int]:
    """Shorten the longest prompt until all fit `budget` or are equally long; then all of them together."""
    lengths = list(lengths)
    while sum(lengths) > budget and min(lengths) < max(lengths):
        lengths[lengths.index(max(lengths))] -= 1
    while sum(lengths) > budget:
        lengths = [length - 1 for length in lengths]
    return lengths


def _joint(
    contents: list[list[int]], tokenizer: CLIPTokenizer, window: int, ending: list[int], regions: bool
) -> TokenPlan:
    budget = window - 2 - len(contents) * len(ending)
    if budget < len(contents):
        raise ValueError(
            f"{len(contents)} prompts do not fit one sequence of {window} tokens; use encoding=separate"
        )
    kept = longest_first_lengths([min(len(content), window - 2) for content in contents], budget)
    ids, owners = [tokenizer.bos_token_id], [SHARED]
    for index, (content, length) in enumerate(zip(contents, kept, strict=True)):
        ids += content[:length] + ending
        owners += [index + 1 if regions else SHARED] * (length + len(ending))
    cuts = _cuts(contents, kept, tokenizer)
    return TokenPlan(*_filled(ids, owners, tokenizer, window, SHARED), cuts)


def _separate(contents: list[list[int]], tokenizer: CLIPTokenizer, window: int) -> TokenPlan:
    kept = [min(len(content), window - 2) for content in contents]
    rows, owners = [], []
    for index, (content, length) in enumerate(zip(contents, kept, strict=True)):
        ids = [tokenizer.bos_token_id, *content[:length]]
        row, owned = _filled(ids, [index + 1] * len(ids), tokenizer, window, index + 1)
        rows.append(row)
        owners.append(owned)
    return TokenPlan(torch.cat(rows), torch.cat(owners), _cuts(contents, kept, tokenizer))


def _filled(
    ids: list[int], owners: list[int], tokenizer: CLIPTokenizer, window: int, rest: int
) -> tuple[Tensor, Tensor]:
    """One sequence, ended by EOS and filled with padding that `rest` owns: ids (1, l), owners (l,)."""
    missing = window - len(ids) - 1
    ids = [*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * missing]
    return torch.tensor([ids]), torch.tensor(owners + [rest] * (missing + 1))


def _cuts(
    contents: list[list[int]], kept: list[int], tokenizer: CLIPTokenizer
) -> tuple[TruncatedPrompt, ...]:
    return tuple(
        TruncatedPrompt(
            index, tokenizer.decode(content[:length]).strip(), tokenizer.decode(content[length:]).strip()
        )
        for index, (content, length) in enumerate(zip(contents, kept, strict=True))
        if length < len(content)
    )


def encode_plans(plans: Sequence[TokenPlan], text_encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Read all sequences of a batch with one call of the text encoder.

    returns: embeddings (b, t, c) and owners (b, t); images with fewer tokens than the longest are filled
             with zeros that nobody reads
    """
    device = next(text_encoder.parameters()).device
    rows = text_encoder(torch.cat([plan.input_ids for plan in plans]).to(device))[0]  # (all s, l, c)
    pieces = rows.split([len(plan.input_ids) for plan in plans])
    return pad_tokens([piece.flatten(0, 1) for piece in pieces], [plan.owners for plan in plans])


def pad_tokens(embeddings: Sequence[Tensor], owners: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (t, c) with owners (t,) of different lengths -> (b, t, c) and (b, t)."""
    embedded = nn.utils.rnn.pad_sequence(list(embeddings), batch_first=True)
    owned = nn.utils.rnn.pad_sequence(list(owners), batch_first=True, padding_value=HIDDEN)
    return embedded, owned.to(embedded.device)
