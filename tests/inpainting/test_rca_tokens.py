"""Token plans and layouts: the published rules to the letter, and what ours adds to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from inpainting.models.text_to_image.rca import attention_sizes, log_visibility, shrink_masks
from inpainting.tokens import HIDDEN, SHARED, encode_plans, longest_first_lengths, plan_tokens
from tests.inpainting.small_inpainter import small_text_encoder, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def words(count: int) -> str:
    """A prompt of exactly `count` tokens."""
    return " ".join(["red", "cube", "a"][index % 3] for index in range(count))


def content(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([80], 75, [75]),
        ([40, 30], 75, [40, 30]),
        ([70, 10], 75, [65, 10]),
        ([75, 75], 75, [37, 37]),  # equal lengths shrink together, so one token stays unused
        ([60, 50, 5], 75, [35, 35, 5]),
        ([30, 30, 30, 1], 75, [24, 25, 25, 1]),
        ([20, 20, 20, 20, 20], 75, [15, 15, 15, 15, 15]),
        ([75, 75, 75, 75, 75], 73, [14, 14, 14, 14, 14]),
        ([0, 90], 75, [0, 75]),
    ],
)
def test_fair_lengths(lengths, budget, expected):
    assert longest_first_lengths(lengths, budget) == expected


@given(st.lists(st.integers(0, 75), min_size=1, max_size=8), st.integers(8, 75))
def test_fair_lengths_are_fair(lengths, budget):
    kept = longest_first_lengths(lengths, budget)
    assert sum(kept) <= max(budget, 0)
    assert all(0 <= after <= before for after, before in zip(kept, lengths, strict=True))
    if sum(lengths) <= budget:
        assert kept == lengths
    cut = [after for after, before in zip(kept, lengths, strict=True) if after < before]
    # A prompt that was cut is about as long as the longest one left.
    assert all(after >= max(kept) - 1 for after in cut)


def test_joint_sequence_is_the_published_one(tokenizer):
    texts = ["a red cube", "a green striped ball on the cube"]
    plan = plan_tokens(texts, tokenizer)
    first, second = (content(text, tokenizer) for text in texts)
    ids = [tokenizer.bos_token_id, *first, *second, tokenizer.eos_token_id]
    assert plan.input_ids.tolist() == [ids + [tokenizer.pad_token_id] * (77 - len(ids))]
    assert plan.token_region_ids.tolist() == [0] + [1] * 3 + [2] * 7 + [0] * (77 - 11)
    assert plan.cuts == ()


def test_without_regions_periods_part_the_prompts(tokenizer):
    texts = ["a red cube", "a ball"]
    plan = plan_tokens(texts, tokenizer, regions=False)
    period = tokenizer.get_vocab()[".</w>"]
    first, second = (content(text, tokenizer) for text in texts)
    ids = [tokenizer.bos_token_id, *first, period, *second, period, tokenizer.eos_token_id]
    assert plan.input_ids[0, : len(ids)].tolist() == ids
    assert plan.token_region_ids.tolist() == [SHARED] * 77
    crowded = plan_tokens([words(40), words(60)], tokenizer, regions=False)
    assert (crowded.input_ids[0] == period).sum() == 2, "the budget leaves room for both periods"
    assert (crowded.input_ids[0] != tokenizer.pad_token_id).sum() <= 77


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_an_overflowing_plan_fills_one_window_and_says_what_it_cut(tokenizer, count):
    texts = [words(90 + index) for index in range(count)]
    plan = plan_tokens(texts, tokenizer)
    assert plan.input_ids.shape == (1, 77)
    assert plan.input_ids[0, 0] == tokenizer.bos_token_id
    assert (plan.input_ids[0] == tokenizer.eos_token_id).sum() == 1
    assert [cut.index for cut in plan.cuts] == list(range(count))
    for cut in plan.cuts:
        assert f"{cut.kept} {cut.lost}".split() == texts[cut.index].split()
        assert (plan.token_region_ids == cut.index + 1).sum() == len(cut.kept.split())


def test_separate_sequences_share_no_budget(tokenizer):
    texts = [words(70), words(60), words(90)]
    plan = plan_tokens(texts, tokenizer, encoding="separate")
    assert plan.input_ids.shape == (3, 77)
    assert plan.token_region_ids.tolist() == [1] * 77 + [2] * 77 + [3] * 77
    assert [(cut.index, len(cut.lost.split())) for cut in plan.cuts] == [(2, 15)]
    for row, text in zip(plan.input_ids, texts, strict=True):
        alone = tokenizer(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert row.tolist() == alone


def test_refusals(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="empty list"):
        plan_tokens([], tokenizer)
    with pytest.raises(ValueError, match="unknown encoding 'own'; allowed: joint, separate"):
        plan_tokens(["a"], tokenizer, encoding="own")
    with pytest.raises(ValueError, match="80 prompts do not fit one sequence of 77 tokens"):
        plan_tokens(["a cube"] * 80, tokenizer)
    endless = small_tokenizer(tmp_path, length=10**30)
    with pytest.raises(ValueError, match="set model_max_length"):
        plan_tokens(["a"], endless)


@torch.no_grad()
def test_batches_of_different_lengths(tokenizer):
    encoder = small_text_encoder(tokenizer)
    one = plan_tokens(["a red cube"], tokenizer, encoding="separate")
    two = plan_tokens(["a ball", "a cone"], tokenizer, encoding="separate")
    embeddings, owners = encode_plans([one, two], encoder)
    assert embeddings.shape == (2, 154, 16)
    assert owners[0].tolist() == [1] * 77 + [HIDDEN] * 77
    alone, _ = encode_plans([two], encoder)
    torch.testing.assert_close(embeddings[1], alone[0], atol=1e-6, rtol=0)
    ids = tokenizer("a cone", padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(embeddings[1, 77:], encoder(ids)[0][0], atol=1e-6, rtol=0)


def test_attention_sizes_are_those_of_the_network():
    assert attention_sizes((64, 64), 4) == [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert attention_sizes((9, 15), 3) == [(9, 15), (5, 8), (3, 4)]


def test_no_small_region_vanishes_at_any_of_400_places():
    """24-pixel masks in 512 pixels: none is lost by coverage, most by the published rule at 8 x 8."""
    rng = np.random.default_rng(0)
    sizes = attention_sizes((64, 64), 4)
    lost = {"coverage": np.zeros(4, int), "nearest": np.zeros(4, int)}
    for _ in range(400):
        mask = torch.zeros(1, 1, 512, 512, dtype=torch.bool)
        y, x = rng.integers(0, 512 - 24, 2)
        mask[..., y : y + 24, x : x + 24] = True
        for layout, counts in lost.items():
            counts += [not shrink_masks(mask, size, layout).any() for size in sizes]
    assert lost["coverage"].tolist() == [0, 0, 0, 0]
    assert lost["nearest"][:2].tolist() == [0, 0]
    assert lost["nearest"][2] > 100
    assert lost["nearest"][3] > 300


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(64, 64), (33, 47), (16, 24)]), st.randoms())
def test_coverage_never_loses_a_region(height, width, latent_hw, random):
    high, wide = latent_hw[0] * 8, latent_hw[1] * 8
    y, x = random.randrange(high - height), random.randrange(wide - width)
    masks = torch.zeros(1, 1, high, wide, dtype=torch.bool)
    masks[..., y : y + height, x : x + width] = True
    for size in attention_sizes(latent_hw, 4):
        assert shrink_masks(masks, size).any()


def test_nearest_is_the_published_interpolation():
    masks = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.7
    layout = torch.cat([torch.ones(1, 1, 64, 64).bool(), masks | ~masks.any(1, keepdim=True)], 1)
    expected = torch.nn.functional.interpolate(layout.float(), size=(16, 16), mode="nearest").flatten(2)
    visibility = log_visibility(masks, (16, 16), "nearest")
    assert torch.equal(visibility.exp(), expected)


def test_background_is_what_no_region_covers():
    masks = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
    masks[0, 0, :20, :20], masks[0, 1, 16:40, 16:40] = True, True  # the third region is absent
    seen = (log_visibility(masks, (8, 8)) == 0).reshape(4, 8, 8)
    assert seen[0].all()
    assert seen[:, 6, 6].tolist() == [True, True, True, True]
    assert seen[:, 0, 0].tolist() == [True, True, False, False]
    assert seen[:, 2, 2].tolist() == [True, True, True, False]  # overlap: both


def test_soft_edges_fade_into_neighbours_and_end():
    masks = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    masks[..., 0, :, :8], masks[..., 1, :, 8:] = True, True
    hard, soft = (log_visibility(masks, (16, 16), soft_cells=width)[0, 1].exp() for width in (0.0, 1.5))
    row = soft.reshape(16, 16)[5]
    assert hard.reshape(16, 16)[5].tolist() == [1.0] * 8 + [0.0] * 8
    assert row[:8].tolist() == [1.0] * 8
    expected = [float(np.exp(-0.5 * (d / 1.5) ** 2)) if d < 4.5 else 0.0 for d in range(1, 9)]
    assert row[8:].tolist() == pytest.approx(expected, abs=1e-6)


def test_unknown_layout():
    with pytest.raises(ValueError, match="unknown layout 'area'; allowed: coverage, nearest"):
        shrink_masks(torch.ones(1, 1, 8, 8).bool(), (4, 4), "area")


def test_the_vocabulary_of_the_tests_has_one_token_per_word(tmp_path: Path):
    tokenizer = small_tokenizer(tmp_path)
    assert [len(content(word, tokenizer)) for word in ("red", "striped", "cube")] == [1, 1, 1]
