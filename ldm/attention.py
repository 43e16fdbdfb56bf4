"""Attention of bfloat16 on a CPU, block by block: 1.5 to 2.7 times faster than torch's own kernel.

torch 2.13 multiplies in its fused kernel at a quarter of the rate of its matrix product (no AMX).
Legend: b batch, a heads, n queries, m keys, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

BLOCK = 2**20  # logits at once: the fastest of 2^18 to 2^24 on an AMD EPYC (second-level cache 1 MB)


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale Q K^T) V for (b, a, n, d), (b, a, m, d), (b, a, m, d).

    scale: d^-1/2 unless given. Logits are rounded to the type of the inputs.
    """
    b, a, n, d = query.shape
    m, rows = key.shape[-2], min(n, max(BLOCK // key.shape[-2], 1))
    heads = max(BLOCK // (rows * m), 1)
    query, key, value = [part.reshape(b * a, -1, part.shape[-1]) for part in (query, key, value)]
    key = (key * (d**-0.5 if scale is None else scale)).transpose(1, 2)
    out = query.new_empty(b * a, n, value.shape[-1])
    for head in range(0, b * a, heads):
        part = slice(head, head + heads)
        for row in range(0, n, rows):
            weights = torch.bmm(query[part, row : row + rows], key[part]).softmax(-1)
            out[part, row : row + rows] = torch.bmm(weights, value[part])
    return out.view(b, a, n, -1)


class FasterAttention(TorchFunctionMode):
    """Within it this thread's `scaled_dot_product_attention` runs block by block where that is faster."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = dict(kwargs or {})
        if function is not scaled_dot_product_attention or not suits(*args, **more):
            return function(*args, **more)
        return blockwise_attention(args[0], args[1], args[2], more.get("scale"))


def suits(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **options: Any,
) -> bool:  # fmt: skip
    """Whether `blockwise_attention` computes the same, and faster: bfloat16 on a CPU, no gradients."""
    plain = attn_mask is None and not dropout_p and not is_causal and not options.get("enable_gqa")
    place = query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.ndim == 4
    return plain and place and not torch.is_grad_enabled()
