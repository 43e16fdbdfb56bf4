"""Attention block by block: the numbers of torch's own, only where it is faster."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from ldm import device as ours
from ldm.device import FasterAttention, blockwise_attention


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("block", [2**20, 100, 7, 1])
@pytest.mark.parametrize(
    ("b", "heads", "n", "m", "d", "width"),
    [
        (1, 1, 1, 1, 8, 8),
        (2, 3, 17, 5, 8, 8),
        (1, 5, 64, 64, 16, 16),
        (2, 1, 9, 40, 4, 12),
        (3, 2, 8, 8, 64, 64),
    ],
)
def test_blocks_give_the_attention_of_all(monkeypatch, block, b, heads, n, m, d, width):
    monkeypatch.setattr(ours, "BLOCK", block)
    shapes = (b, heads, n, d), (b, heads, m, d + 0), (b, heads, m, width)
    query, key, value = (draw(*shape, dtype=torch.float64) for shape in shapes)
    for scale in (None, 0.3):
        exact = attention(query, key, value, scale=scale)
        torch.testing.assert_close(blockwise_attention(query, key, value, scale), exact)


def test_bfloat16_stays_within_its_rounding():
    query, key, value = draw(1, 2, 300, 64), draw(1, 2, 257, 64), draw(1, 2, 257, 64)
    exact = attention(*(part.double() for part in (query, key, value)))
    error = (blockwise_attention(query, key, value) - exact).abs()
    assert float(error.max()) < 2**-6  # values are of order 1; their own step is 2^-8
    assert float(error.mean()) < 2**-11


@pytest.mark.parametrize(
    ("dtype", "options", "runs"),
    [
        (torch.bfloat16, {}, True),
        (torch.bfloat16, {"scale": 0.2}, True),
        (torch.bfloat16, {"dropout_p": 0.0, "is_causal": False, "attn_mask": None}, True),
        (torch.float32, {}, False),
        (torch.float16, {}, False),
        (torch.bfloat16, {"is_causal": True}, False),
        (torch.bfloat16, {"attn_mask": torch.ones(6, 6, dtype=torch.bool)}, False),
        (torch.bfloat16, {"dropout_p": 0.5}, False),
        (torch.bfloat16, {"enable_gqa": True}, False),
    ],
)
def test_it_runs_only_where_it_is_faster_and_the_same(monkeypatch, dtype, options, runs):
    called = []

    def counting(*parts, **more):
        called.append(True)
        return blockwise_attention(*parts, **more)

    monkeypatch.setattr(ours, "blockwise_attention", counting)
    parts = [draw(1, 2, 6, 8, dtype=dtype)] * 3
    with torch.no_grad(), FasterAttention():
        inside = attention(*parts, **options)
    assert bool(called) is runs
    if "dropout_p" not in options or not options["dropout_p"]:
        torch.testing.assert_close(inside, attention(*parts, **options), atol=0.02, rtol=0.02)
    with FasterAttention():
        attention(*(part.requires_grad_() for part in parts), **options)  # gradients: torch's own
    assert len(called) == runs
    with torch.no_grad():
        attention(*parts, **options)
    assert len(called) == runs
