"""Views -> pixels: the image, the same image without one solid, who owns each pixel, depth of every part.

Legend: b views, h w pixels, p part slots per view; m rays or pixels of a flat list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.scenes.pack import View, World, pack
from datasets.scenes.shade import expose, radiance, to_display
from datasets.scenes.solids import FAR
from datasets.scenes.surface import surface, take
from datasets.scenes.trace import Hit, Rays, cast, cast_room, covers, first, hidden_parts, pixel_rays

SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
ROUGH = 0.09  # a pixel that differs by more from a neighbour (display value) gets four rays


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels of some views. Depth is inverse view depth in 1 / metres, 0 for nothing."""

    image: Tensor  # (b, 3, h, w) display values
    without: Tensor  # (b, 3, h, w)
    owner: Tensor  # (b, h, w) int64, visible solid, -1 room
    amodal: Tensor  # (b, p, h, w) bool per part slot
    part_owner: Tensor  # (b, p) int64, solid that each part belongs to, -1 padding
    part_inverse: Tensor  # (b, p, h, w) inverse depth of each part, 0 where it is not
    inverse: Tensor  # (b, h, w)
    inverse_without: Tensor
    coverage: Tensor  # (b, h, w) share of the pixel that shows something, in [0, 1]


def _trace(world: World, rays: Rays) -> tuple[Tensor, Hit, Hit]:
    """Depth per part (p, m), first hit, first hit without the hidden solid."""
    depth = cast(world, rays)
    behind = cast_room(world, rays)
    return depth, first(depth, behind), first(torch.where(hidden_parts(world, rays), FAR, depth), behind)


def _some(rays: Rays, index: Tensor) -> Rays:
    wide = rays.footprint.numel() > 1
    return Rays(
        rays.view[index],
        rays.direction[:, index],
        rays.near[:, index],
        rays.footprint[index] if wide else rays.footprint,
    )


def _light(world: World, rays: Rays, hit: Hit, hit_wo: Hit) -> tuple[Tensor, Tensor]:
    """Linear light (3, m) of the full scene and without the hidden solid.

    The second is shaded again only where it differs, so elsewhere both are equal to the last bit.
    """
    found = surface(world, rays, hit)
    share = expose(world, rays, found)
    light = radiance(world, rays, found, share.lamp, share.sky)
    without = light.clone()
    uncovered = hit_wo.slot != hit.slot
    differs = (
        (~uncovered & ((share.lamp != share.lamp_wo) | (share.sky != share.sky_wo))).nonzero().squeeze(1)
    )
    if differs.numel():
        without[:, differs] = radiance(
            world, _some(rays, differs), take(found, differs), share.lamp_wo[differs], share.sky_wo[differs]
        )
    index = uncovered.nonzero().squeeze(1)
    if index.numel():
        behind = _some(rays, index)
        seen = surface(world, behind, Hit(hit_wo.slot[index], hit_wo.depth[index]))
        share = expose(world, behind, seen)
        without[:, index] = radiance(world, behind, seen, share.lamp_wo, share.sky_wo)
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


def _averages(
    world: World, size: tuple[int, int], near: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over four rays in each of the pixels (m,): light (3, m), light without, coverage (m,)."""
    four = pixel.repeat(4)
    offset = torch.tensor(SUBPIXELS, device=pixel.device).T.repeat_interleave(pixel.numel(), 1)
    rays = pixel_rays(world, size, near, four, offset, scale=0.5)
    rays = replace(rays, near=near.index_select(1, four))
    _, hit, hit_wo = _trace(world, rays)
    light, without = _light(world, rays, hit, hit_wo)
    covered = (hit.slot != -9).float()
    return light.view(3, 4, -1).mean(1), without.view(3, 4, -1).mean(1), covered.view(4, -1).mean(0)


def draw(
    views: Sequence[View],
    size: tuple[int, int],
    supersample: int,
    smooth_edges: bool,
    device: torch.device | str,
) -> Images:
    """Render some views at once."""
    h, w = size
    world = pack(views, device)
    near = covers(world, size)
    pixel = torch.arange(world.count * h * w, device=near.device)
    rays = pixel_rays(world, size, near, pixel, (0.0, 0.0))
    depth, hit, hit_wo = _trace(world, rays)
    grid = (world.count, h, w)
    coverage = (hit.slot != -9).float()
    if supersample == 2:
        light, without, coverage = _averages(world, size, near, pixel)
    else:
        light, without = _light(world, rays, hit, hit_wo)
        if smooth_edges:
            rough = _rough(to_display(light).view(3, *grid)).flatten()
            rough_wo = _rough(to_display(without).view(3, *grid)).flatten()
            index = (rough | rough_wo).nonzero().squeeze(1)
            fine, fine_wo, covered = _averages(world, size, near, index)
            light[:, rough] = fine[:, rough[index]]
            without[:, rough_wo] = fine_wo[:, rough_wo[index]]
            coverage[index] = covered
    part = rays.view * world.slots + hit.slot.clamp(min=0)
    owner = torch.where(hit.slot >= 0, world.parts.owner[part], -1)
    met = (depth < FAR).view(world.slots, *grid).transpose(0, 1)
    inverse = torch.where(depth < FAR, 1 / depth, 0.0).view(world.slots, *grid).transpose(0, 1)
    return Images(
        to_display(light).view(3, *grid).transpose(0, 1),
        to_display(without).view(3, *grid).transpose(0, 1),
        owner.view(grid),
        met,
        world.parts.owner.view(world.count, -1),
        inverse,
        _inverse(hit).view(grid),
        _inverse(hit_wo).view(grid),
        coverage.view(grid),
    )


def _inverse(hit: Hit) -> Tensor:
    return torch.where(hit.depth < FAR, 1 / hit.depth, 0.0)
