"""Prompts of several regions -> token sequences, and the region of each token.

joint     one sequence for all prompts of an image, as published: BOS, prompt 1, prompt 2 ..., EOS, padding
separate  one sequence per prompt: no prompt knows of another

Legend: s sequences, l tokens of one sequence (77 in CLIP), t tokens of an image = s l, b images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from inpainting.models.text_to_image.config import ENCODINGS
from ldm.device import check_finite

SHARED = 0  # region id of a token that every pixel may read; tokens of region k have k + 1
HIDDEN = -1  # region id of the padding between images of one batch, which no pixel reads
SEPARATOR = ".</w>"  # after each prompt where no region map separates them (published)
LONGEST_WINDOW = 4096  # chosen; transformers' value for `no length` is 1e30


@dataclass(frozen=True)
class TruncatedPrompt:
    index: int
    kept: str  # what the model reads
    lost: str


@dataclass(frozen=True, eq=False)
class TokenPlan:
    input_ids: Tensor  # (s, l) int64
    token_region_ids: Tensor  # (t,) int64, 0 = shared, k + 1 = only for region k
    cuts: tuple[TruncatedPrompt, ...] = ()  # prompts that were shortened


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
    window = tokenizer.model_max_length  # BOS and EOS included
    if window > LONGEST_WINDOW:
        raise ValueError("the tokenizer has no length: set model_max_length in its tokenizer_config.json")
    contents = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    lengths = [min(len(content), window - 2) for content in contents]
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * window
    if encoding == "separate" and regions:
        sequences = [(start + content[: window - 2] + end)[:window] for content in contents]
        region_ids = [index for index in range(1, len(texts) + 1) for _ in range(window)]
    else:
        ending = [] if regions else [tokenizer.get_vocab().get(SEPARATOR)]
        if ending == [None]:
            raise ValueError(f"the tokenizer's words lack {SEPARATOR!r}, which separates joined prompts")
        count = len(contents)
        budget = window - 2 - count * len(ending)
        if budget < count:
            raise ValueError(f"{count} prompts do not fit one sequence of {window} tokens; encoding=separate")
        lengths = longest_first_lengths(lengths, budget)
        ids, region_ids = start, [SHARED]
        for index, (content, length) in enumerate(zip(contents, lengths, strict=True), 1):
            ids = ids + content[:length] + ending
            region_ids += [index if regions else SHARED] * (length + len(ending))
        sequences = [(ids + end)[:window]]
        region_ids += [SHARED] * (window - len(region_ids))
    cuts = []
    for index, (content, length) in enumerate(zip(contents, lengths, strict=True)):
        if length < len(content):
            kept, lost = (tokenizer.decode(part).strip() for part in (content[:length], content[length:]))
            cuts.append(TruncatedPrompt(index, kept, lost))
    return TokenPlan(torch.tensor(sequences), torch.tensor(region_ids), tuple(cuts))


def plan_shared(text: str, tokenizer: CLIPTokenizer) -> TokenPlan:
    """One prompt that every pixel reads, such as a negative prompt for the whole image."""
    plan = plan_tokens([text], tokenizer)
    return TokenPlan(plan.input_ids, torch.full_like(plan.token_region_ids, SHARED))


def longest_first_lengths(lengths: Sequence[int], budget: int) -> list[int]:
    """Shorten the longest prompt until all fit `budget` or are equally long; then all of them together."""
    lengths = list(lengths)
    while sum(lengths) > budget and min(lengths) < max(lengths):
        lengths[lengths.index(max(lengths))] -= 1
    while sum(lengths) > budget:
        lengths = [length - 1 for length in lengths]
    return lengths


def encode_plans(plans: Sequence[TokenPlan], text_encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Embeddings (b, t, c) and token_region_ids (b, t) of a batch, by one call of the text encoder.

    Images with fewer tokens than the longest are padded with zeros that no pixel reads.
    """
    device = next(text_encoder.parameters()).device
    ids = torch.cat([plan.input_ids for plan in plans])
    rows = check_finite(text_encoder(ids.to(device))[0], "text encoder")  # (all s, l, c)
    embeddings = [piece.flatten(0, 1) for piece in rows.split([len(plan.input_ids) for plan in plans])]
    region_ids = [plan.token_region_ids for plan in plans]
    pad = nn.utils.rnn.pad_sequence
    return pad(embeddings, True), pad(region_ids, True, HIDDEN).to(device)
