"""Views -> pixels: the image, the same image without one solid, who owns each pixel, depth of every part.

Legend: b views, h w pixels, p part slots per view; m rays or pixels of a flat list.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.scenes.pack import SceneView, pack
from datasets.scenes.shade import expose, radiance, to_display
from datasets.scenes.solids import FAR
from datasets.scenes.surface import surface_of, take
from datasets.scenes.trace import NOTHING, Hit, Rays, cast_parts, cast_room, covers, first, pixel_rays

SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
ROUGH = 0.09  # a pixel that differs by more from a neighbour (display value) gets four rays; chosen by eye


@dataclass(frozen=True, eq=False)
class RenderedViews:
    """Pixels of some views. Depth is inverse view depth in 1 / metres, 0 for nothing."""

    image: Tensor  # (b, 3, h, w) display values
    without: Tensor  # (b, 3, h, w)
    owner: Tensor  # (b, h, w) int64, visible solid, -1 room
    amodal: Tensor  # (b, p, h, w) bool per part slot
    part_owner: Tensor  # (b, p) int64, solid that each part belongs to, -1 padding
    part_inverse: Tensor  # (b, p, h, w) inverse depth of each part, 0 where it is not
    inverse: Tensor  # (b, h, w)
    inverse_without: Tensor
    coverage: Tensor  # (b, h, w) fraction of the pixel that shows something, in [0, 1]


def _trace(rays: Rays) -> tuple[Tensor, Hit, Hit]:
    """Depth per part (p, m), first hit, first hit without the hidden solid."""
    depth, behind, packed = cast_parts(rays), cast_room(rays), rays.packed
    hidden = rays.at(packed.parts.hidden.view(packed.count, packed.slots).T)  # (p, m) or (p, 1)
    return depth, first(depth, behind), first(torch.where(hidden, FAR, depth), behind)


def _light(rays: Rays, hit: Hit, hit_wo: Hit) -> tuple[Tensor, Tensor]:
    """Linear light (3, m) of the full scene and without the hidden solid.

    The second is shaded again only where it differs, so elsewhere both are equal to the last bit.
    """
    seen = surface_of(rays, hit)
    exposure = expose(rays, seen)
    light = radiance(rays, seen, exposure.lamp, exposure.sky)
    without = light.clone()
    uncovered = hit_wo.slot != hit.slot
    changed = (exposure.lamp != exposure.lamp_wo) | (exposure.sky != exposure.sky_wo)
    index = (~uncovered & changed).nonzero().squeeze(1)
    if index.numel():
        lamp, sky = exposure.lamp_wo[index], exposure.sky_wo[index]
        without[:, index] = radiance(rays.subset(index), take(seen, index), lamp, sky)
    index = uncovered.nonzero().squeeze(1)
    if index.numel():
        behind = rays.subset(index)
        seen = surface_of(behind, Hit(hit_wo.slot[index], hit_wo.depth[index]))
        exposure = expose(behind, seen)
        without[:, index] = radiance(behind, seen, exposure.lamp_wo, exposure.sky_wo)
    return light, without


def _rough(display: Tensor) -> Tensor:
    """(3, b, h, w) -> (b, h, w) bool: differs from one of its four neighbours."""
    rough = torch.zeros(display.shape[1:], dtype=torch.bool, device=display.device)
    down = (display[..., 1:, :] - display[..., :-1, :]).abs().amax(0) > ROUGH
    across = (display[..., 1:] - display[..., :-1]).abs().amax(0) > ROUGH
    rough[:, 1:] |= down
    rough[:, :-1] |= down
    rough[..., 1:] |= across
    rough[..., :-1] |= across
    return rough


def _averages(rays: Rays, size: tuple[int, int], pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over four rays in each of the pixels (m,): light (3, m), light without, coverage (m,).

    rays: through the centres of all pixels
    """
    four = pixel.repeat(4)
    offset = torch.tensor(SUBPIXELS, device=pixel.device).T.repeat_interleave(pixel.numel(), 1)
    near = rays.near.index_select(1, four)
    finer = pixel_rays(rays.packed, size, near, four, offset, scale=0.5)
    _, hit, hit_wo = _trace(finer)
    light, without = _light(finer, hit, hit_wo)
    covered = (hit.slot != NOTHING).float()
    return light.view(3, 4, -1).mean(1), without.view(3, 4, -1).mean(1), covered.view(4, -1).mean(0)


def draw_views(
    views: Sequence[SceneView],
    size: tuple[int, int],
    supersample: int,
    smooth_edges: bool,
    device: torch.device | str,
) -> RenderedViews:
    """Render some views at once."""
    h, w = size
    packed = pack(views, device)
    near, grid = covers(packed, size), (packed.count, h, w)
    pixel = torch.arange(near.shape[1], device=near.device)
    rays = pixel_rays(packed, size, near, pixel, (0.0, 0.0))
    depth, hit, hit_wo = _trace(rays)
    coverage = (hit.slot != NOTHING).float()
    if supersample == 2:
        light, without, coverage = _averages(rays, size, pixel)
    else:
        light, without = _light(rays, hit, hit_wo)
        if smooth_edges:
            rough = _rough(to_display(light).view(3, *grid)).flatten()
            rough_wo = _rough(to_display(without).view(3, *grid)).flatten()
            index = (rough | rough_wo).nonzero().squeeze(1)
            fine, fine_wo, covered = _averages(rays, size, index)
            light[:, rough] = fine[:, rough[index]]
            without[:, rough_wo] = fine_wo[:, rough_wo[index]]
            coverage[index] = covered
    part = rays.view * packed.slots + hit.slot.clamp(min=0)
    part_inverse = torch.where(depth < FAR, 1 / depth, 0.0)
    return RenderedViews(
        to_display(light).view(3, *grid).transpose(0, 1),
        to_display(without).view(3, *grid).transpose(0, 1),
        torch.where(hit.slot >= 0, packed.parts.owner[part], -1).view(grid),
        (depth < FAR).view(packed.slots, *grid).transpose(0, 1),
        packed.parts.owner.view(packed.count, -1),
        part_inverse.view(packed.slots, *grid).transpose(0, 1),
        torch.where(hit.depth < FAR, 1 / hit.depth, 0.0).view(grid),
        torch.where(hit_wo.depth < FAR, 1 / hit_wo.depth, 0.0).view(grid),
        coverage.view(grid),
    )
