"""Rectified cross-attention on the stock diffusers UNet: a pixel reads only the prompts of its own regions.

    A[p, j] = softmax_j(q_p . k_j / sqrt(d) + beta[p, j]),  beta = 0 where pixel p may read token j, or -inf

beta is built once per call (or training batch) for each resolution, for all heads, layers and steps, and
given to one fused attention call:

    install_rca(unet)
    kwargs = region_kwargs(masks, region_ids, latent_hw, levels=4)   # {"regions": {n: (b, 1, n, t)}}
    unet(x, t, encoder_hidden_states=embeddings, cross_attention_kwargs=kwargs)

It travels as an argument, never as state of the processors: gradient checkpointing runs a block again with
the arguments it was first given.

A pixel of one or more regions reads their prompts; a pixel of none (background) reads all of them. Layouts:

nearest   the published rule: a cell takes the value of its top-left pixel, so a small region may vanish
coverage  a cell belongs to every region that touches it; the background is what no region touches

Legend: b images, r regions, H W pixels of the masks, h w cells of one resolution, n = h w, t tokens.
"""

from typing import Any

import cv2
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from inpainting.models.text_to_image.config import LAYOUTS
from inpainting.tokens import HIDDEN

Regions = dict[int, Tensor]
REACH = 3.0  # soft edges end at so many times their width
# Of diffusers; PyTorch chooses a kernel that takes a bias. Its flash attention takes none.
OWN_BACKENDS = ("native", "_native_cudnn", "_native_efficient", "_native_math")
ALIGNED = 16  # tokens; the CUDA kernels copy a bias whose rows do not start at multiples of this


class RegionalAttention(AttnProcessor2_0):
    """Cross-attention with the bias of its resolution added; without `regions` the stock attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """hidden_states (b, n, c), encoder_hidden_states (b, t, c') -> (b, n, c)."""
        if regions is None or encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            raise ValueError("regions cannot be used together with an encoder_attention_mask")
        (b, n), t = hidden_states.shape[:2], encoder_hidden_states.shape[1]
        bias, expected = regions.get(n), (b, 1, n, t)
        if bias is None:
            built = ", ".join(map(str, regions))
            raise ValueError(f"no region map for {n} latent cells, only for {built}: another latent size?")
        if bias.shape != expected:
            way = "images, 1, cells, tokens; build it from masks and region ids of every image of the batch"
            raise ValueError(f"the region map is {tuple(bias.shape)}, this batch needs {expected}: {way}")
        q = rearrange(attn.to_q(hidden_states), "b n (h d) -> b h n d", h=attn.heads)
        k = rearrange(attn.to_k(encoder_hidden_states), "b t (h d) -> b h t d", h=attn.heads)
        v = rearrange(attn.to_v(encoder_hidden_states), "b t (h d) -> b h t d", h=attn.heads)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        projection, dropout = attn.to_out
        return dropout(projection(rearrange(read, "b h n d -> b n (h d)")))


def install_rca(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give a stock UNet (plain, with LoRA, checkpointed) the processors; ValueError for another network.

    Without `regions` among the cross_attention_kwargs it computes what it did before.
    """
    for name, layer in attention_layers(unet):
        cross = name.endswith("attn2")
        unusual = layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.norm_cross
        if cross and (any(part is not None for part in unusual) or layer.residual_connection):
            raise ValueError(f"{name}: this is not the plain cross-attention of Stable Diffusion")
        if cross != layer.is_cross_attention:
            kind = "cross-attention" if cross else "self-attention"
            raise ValueError(f"{name}: expected {kind}, as Stable Diffusion has it")
        layer.set_processor(RegionalAttention())
    if check_processors not in unet._forward_pre_hooks.values():
        unet.register_forward_pre_hook(check_processors, with_kwargs=True)
    return unet


def attention_layers(unet: nn.Module) -> list[tuple[str, Attention]]:
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]


def check_processors(unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Before every forward: diffusers drops unknown arguments of a processor with no more than a warning."""
    if "regions" not in (kwargs.get("cross_attention_kwargs") or {}):
        return
    backend = str(_AttentionBackendRegistry.get_active_backend()[0].value)
    if backend not in OWN_BACKENDS:
        wrong = f"attention backend {backend!r} takes no bias of each pixel, which regions need"
        way = "PyTorch's own, unet.set_attention_backend('native'), or do without rectified cross-attention"
        raise ValueError(f"{wrong}: choose {way}")
    for name, layer in attention_layers(unet):
        if not isinstance(layer.processor, RegionalAttention):
            wrong = f"rectified cross-attention is switched off: {name} runs {type(layer.processor).__name__}"
            by = "Something replaced the attention processors (set_attn_processor, enable_xformers..., "
            way = "fuse_qkv_projections); call install_rca(unet) after it, or do without it"
            raise ValueError(f"{wrong}. {by}{way}")


def attention_sizes(latent_hw: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """(h, w) of the latents and of every halving down to the last of `levels`; odd sides are rounded up."""
    h, w = latent_hw
    return [(-(-h // 2**level), -(-w // 2**level)) for level in range(levels)]


def shrink_masks(masks: Tensor, size_hw: tuple[int, int], layout: str = "coverage") -> Tensor:
    """(b, r, H, W) bool -> (b, r, h, w) bool by the rule of `layout`."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; allowed: {', '.join(LAYOUTS)}")
    if masks.shape[1] == 0:
        return masks.new_zeros(masks.shape[0], 0, *size_hw)
    values = masks.float()
    if layout == "nearest":
        return F.interpolate(values, size=size_hw, mode="nearest") > 0.5
    (high, wide), (h, w) = masks.shape[-2:], size_hw
    if high % h or wide % w:
        return F.adaptive_max_pool2d(values, size_hw) > 0.5
    return F.max_pool2d(values, (high // h, wide // w)) > 0.5  # the same, faster


def log_visibility(
    masks: Tensor, size_hw: tuple[int, int], layout: str = "coverage", soft_cells: float = 0.0
) -> Tensor:
    """How strongly cell i may read the prompt of region k, as the logarithm of a factor.

    masks:      (b, r, H, W) bool; a row without any pixel is an absent region and is seen by background only
    soft_cells: width of soft edges in cells: outside its own cells a region fades with the distance d as
                exp(-d^2 / 2 width^2) where other regions are, and ends at three widths
    returns:    (b, r + 1, n) float32: 0 = read as it is, -inf = hidden; row 0, for shared tokens, is 0
    """
    cells = shrink_masks(masks, size_hw, layout)
    background = ~cells.any(dim=1, keepdim=True)
    outside = np.full(cells.shape, -np.inf, np.float32)
    if soft_cells > 0:
        flat = cells.flatten(0, 1).cpu().numpy().astype(np.uint8)
        for row, region in zip(outside.reshape(flat.shape), flat, strict=True):
            if region.any():
                distance = cv2.distanceTransform(1 - region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
                fading = -0.5 * (distance / soft_cells) ** 2
                row[:] = np.where(distance < REACH * soft_cells, fading, -np.inf)
    hidden = torch.from_numpy(outside).to(masks.device).masked_fill(cells | background, 0.0)
    shared = hidden.new_zeros(len(masks), 1, *size_hw)
    return torch.cat([shared, hidden], dim=1).flatten(2)


def region_kwargs(
    masks: Tensor,
    region_ids: Tensor,
    latent_hw: tuple[int, int],
    *,
    levels: int,
    layout: str = "coverage",
    soft_cells: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Regions]:
    """The `cross_attention_kwargs` of one batch, whose rows are in the order of the latents.

    For n images per prompt repeat the rows of masks and ids n times; for guidance in one batch put the
    unconditional rows first, with ids 0 where every pixel shall read every token.

    masks, soft_cells: see `log_visibility`; masks of any size of the aspect of the latents
    region_ids: (b, t) from `tokens`: 0 = shared, k + 1 = region k, -1 = read by nobody
    levels:     resolutions of the UNet: len(unet.config.block_out_channels)
    """
    highest = int(region_ids.max())
    if highest > masks.shape[1] or len(masks) != len(region_ids):
        wrong = f"tokens of {len(region_ids)} images name region {highest},"
        raise ValueError(f"{wrong} there are masks of {len(masks)} images and {masks.shape[1]} regions")
    regions = {}
    for level, (h, w) in enumerate(attention_sizes(latent_hw, levels)):
        visibility = log_visibility(masks, (h, w), layout, soft_cells / 2**level)
        regions[h * w] = region_bias(visibility, region_ids.to(masks.device), dtype)
    return {"regions": regions}


def region_bias(visibility: Tensor, region_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """beta: visibility (b, r + 1, n), region_ids (b, t) -> (b, 1, n, t), a view of rows of aligned length."""
    hidden = (region_ids == HIDDEN)[..., None]
    index = region_ids.clamp(min=0)[..., None].expand(-1, -1, visibility.shape[2])
    rows = visibility.gather(1, index).masked_fill(hidden, float("-inf"))  # (b, t, n)
    # Where only regions without a prompt are and no token is shared, a cell reads all: softmax needs one.
    fully_masked_rows = rows.amax(dim=1, keepdim=True).isneginf()
    rows = rows.masked_fill(fully_masked_rows & ~hidden, 0.0)
    b, t, n = rows.shape
    bias = torch.zeros(b, 1, n, -(-t // ALIGNED) * ALIGNED, dtype=dtype, device=visibility.device)[..., :t]
    bias[:, 0] = rearrange(rows, "b t n -> b n t")
    return bias
