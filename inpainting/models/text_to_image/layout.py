"""Which pixel may read which region's prompt, at every resolution of the UNet.

A pixel of one or more regions reads their prompts; a pixel of none (background) reads all of them.

nearest   the published rule: a cell takes the value of its top-left pixel, so a small region may vanish
          at a coarse resolution, where its prompt then acts on background only
coverage  a cell belongs to every region that touches it, so no region vanishes; the background is what
          no region touches

Legend: b images, r regions, H W pixels of the masks, h w cells of one resolution, n = h w.
"""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LAYOUTS = ("coverage", "nearest")
REACH = 3.0  # soft edges end at so many times their width


def attention_sizes(latent_hw: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """(h, w) of the latents and of every halving down to the last of `levels`; odd sides are rounded up."""
    sizes = [latent_hw]
    for _ in range(levels - 1):
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


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

    masks:      (b, r, H, W) bool; a row without any pixel is an absent region and is seen by background only.
                The published layout's rows 1 to n, which hold the background already, give the same result
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
