"""Views -> pixels: light on surfaces, the image, the image without one solid, owner and depth of each pixel.

Every quantity that the removed solid can change (lamp and sky visibility) is computed twice from the same ray
casts, with it and without it; where both agree the two images agree to the last bit.
Legend: b views, h w pixels, p part slots per view; m n rays or pixels of a flat list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.scenes import trace
from datasets.scenes.pack import SceneView, pack
from datasets.scenes.solids import FAR
from datasets.scenes.surface import Surface, surface_of

SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
ROUGH = 0.09  # a pixel that differs by more from a neighbour (display value) gets four rays; chosen by eye
# All numbers are chosen by eye, so that rooms look evenly lit and solids stand out; none is a measurement.
LIFT = 0.006  # metres that a shadow ray starts above its surface: above the error of float32 in a room
REACH = 4.5  # radii of a ball beyond which it darkens nothing, exactly
CONTACT = 0.85  # of the sky that a touching ball takes away
FALLOFF = 6.0  # light of the lamp: its strength over this plus the squared distance in metres
FRESNEL = 0.04, 0.5  # mirrored part of a glossy surface seen head-on, and what a grazing view adds (Schlick)
HIGHLIGHT = 0.7  # strength of the lamp's highlight
SKY_MIRRORED = 1.6  # the sky is brighter in a mirror than as diffuse light
SHOULDER = 0.75  # light above it is compressed, so that nothing is cut off at 1

Exposure = tuple[Tensor, Tensor]  # fractions of lamp and sky that reach each point, (n,) in [0, 1]


def expose(rays: trace.Rays, surface: Surface) -> tuple[Exposure, Exposure]:
    """Exposure of each point in the full scene and without the hidden solid: shadow rays, nearby parts."""
    facing = ((rays.at(rays.packed.light["origin"]) - surface.point) * surface.normal).sum(0) > 0
    seen, seen_wo = trace.shadows(rays, surface.point + LIFT * surface.normal, facing & ~surface.empty)
    # Each part darkens like a ball of its volume: cosine times solid angle, zero beyond REACH radii.
    sky, sky_wo = torch.ones_like(surface.gloss), torch.ones_like(surface.gloss)
    parts = rays.packed.parts
    for slot in range(rays.packed.slots):
        offset = rays.of_slot(parts.middle, slot) - surface.point
        radius, square = rays.of_slot(parts.ball_radius, slot), offset.square().sum(0)
        cosine = ((offset * surface.normal).sum(0) / square.sqrt()).clamp(min=0)
        near = (radius * radius / square).clamp(max=1)
        fade = (1 - square / (REACH * radius + 1e-6).square()).clamp(min=0)
        itself = rays.of_slot(parts.owner, slot) == surface.owner
        left = 1 - torch.where(itself, 0.0, CONTACT * cosine * near * fade)
        sky = sky * left
        sky_wo = torch.where(rays.of_slot(parts.hidden, slot), sky_wo, sky_wo * left)
    return (seen, sky), (seen_wo, sky_wo)


def radiance(rays: trace.Rays, surface: Surface, exposure: Exposure) -> Tensor:
    """Linear light (3, n) in [0, 1] towards the camera; a ray that meets nothing sees the sky, or white."""
    packed, (lamp_visible, sky_visible) = rays.packed, exposure
    key, sky, bounce = (rays.at(packed.light[name]) for name in ("key_rgb", "sky_rgb", "bounce_rgb"))
    way = rays.at(packed.light["origin"]) - surface.point
    square = way.square().sum(0)
    toward_lamp = way / square.sqrt()
    toward_eye = -rays.direction / rays.direction.square().sum(0).sqrt()
    facing = (toward_lamp * surface.normal).sum(0).clamp(min=0)
    lit = lamp_visible * facing * ((square + FALLOFF).reciprocal() * rays.at(packed.light["strength"]))
    up = 0.5 + 0.5 * surface.normal[2]
    fill = torch.lerp(bounce.expand_as(surface.normal), sky.expand_as(surface.normal), up)
    halfway = toward_lamp + toward_eye
    halfway = halfway / halfway.square().sum(0).sqrt().clamp(min=1e-6)
    shine = (halfway * surface.normal).sum(0).clamp(min=1e-4) ** surface.shine
    eye_cosine = (toward_eye * surface.normal).sum(0)
    mirrored_up = 0.5 + 0.5 * (2 * eye_cosine * surface.normal[2] - toward_eye[2])
    rim = surface.gloss * (FRESNEL[0] + FRESNEL[1] * (1 - eye_cosine.clamp(0, 1)) ** 4) * sky_visible
    mirror = torch.lerp(bounce.expand_as(fill), sky.expand_as(fill) * SKY_MIRRORED, mirrored_up.clamp(0, 1))
    light = surface.albedo * (key * lit + fill * sky_visible)
    light = light + key * (surface.gloss * shine * lamp_visible * (facing > 0)) * HIGHLIGHT + rim * mirror
    if packed.open and packed.room is not None:
        far = (surface.point - rays.at(packed.origin)).square().sum(0).sqrt()
        haze = torch.exp(-rays.at(packed.room["haze"]) * far)
        light = torch.lerp(rays.at(packed.room["horizon_rgb"]), light, haze)
    return torch.where(surface.empty, surface.albedo, compressed(light))


def compressed(light: Tensor) -> Tensor:
    """Linear light >= 0 -> [0, 1]: the same up to the shoulder, then a smooth approach to 1."""
    rest, over = 1 - SHOULDER, (light - SHOULDER).clamp(min=0)
    return torch.minimum(light, torch.full_like(light, SHOULDER)) + rest * (1 - torch.exp(-over / rest))


def to_display(light: Tensor) -> Tensor:
    """Linear light -> display values, gamma 1 / 2.2."""
    return light.clamp(0, 1) ** (1 / 2.2)


@dataclass(frozen=True, eq=False)
class RenderedViews:
    """Pixels of some views. Depth is inverse view depth in 1 / metres, 0 for nothing."""

    image: Tensor  # (b, 3, h, w) display values
    without: Tensor  # (b, 3, h, w)
    owner: Tensor  # (b, h, w) int64, visible solid, -1 room
    part_owner: Tensor  # (b, p) int64, solid that each part belongs to, -1 padding
    part_inverse: Tensor  # (b, p, h, w) inverse depth of each part, 0 where it is not
    inverse: Tensor  # (b, h, w)
    inverse_without: Tensor
    coverage: Tensor  # (b, h, w) fraction of the pixel that shows something, in [0, 1]


def _trace(rays: trace.Rays) -> tuple[Tensor, trace.Hit, trace.Hit]:
    """Depth per part (p, m), first hit, first hit without the hidden solid."""
    depth, behind, packed = trace.cast_parts(rays), trace.cast_room(rays), rays.packed
    hidden = rays.at(packed.parts.hidden.view(packed.count, packed.slots).T)  # (p, m) or (p, 1)
    return depth, trace.first(depth, behind), trace.first(torch.where(hidden, FAR, depth), behind)


def _light(rays: trace.Rays, hit: trace.Hit, hit_wo: trace.Hit) -> tuple[Tensor, Tensor]:
    """Linear light (3, m) of the full scene and without the hidden solid, shaded again where it differs."""
    seen = surface_of(rays, hit)
    (lamp, sky), (lamp_wo, sky_wo) = expose(rays, seen)
    light = radiance(rays, seen, (lamp, sky))
    without, uncovered = light.clone(), hit_wo.slot != hit.slot
    changed = (lamp != lamp_wo) | (sky != sky_wo)
    index = (~uncovered & changed).nonzero().squeeze(1)
    if index.numel():
        part = replace(seen, **{name: value[..., index] for name, value in vars(seen).items()})
        without[:, index] = radiance(rays.subset(index), part, (lamp_wo[index], sky_wo[index]))
    index = uncovered.nonzero().squeeze(1)
    if index.numel():
        behind = rays.subset(index)
        seen = surface_of(behind, trace.Hit(hit_wo.slot[index], hit_wo.depth[index]))
        without[:, index] = radiance(behind, seen, expose(behind, seen)[1])
    return light, without


def _rough(display: Tensor) -> Tensor:
    """(3, b, h, w) -> (b, h, w) bool: differs from one of its four neighbours."""
    rough = torch.zeros(display.shape[1:], dtype=torch.bool, device=display.device)
    for axis in (1, 2):
        step = display.diff(dim=axis + 1).abs().amax(0) > ROUGH
        for start in (0, 1):
            rough.narrow(axis, start, step.shape[axis]).logical_or_(step)
    return rough


def _averages(rays: trace.Rays, size: tuple[int, int], pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over four rays in some of the pixels of `rays`: light (3, m), light without, coverage (m,)."""
    four = pixel.repeat(4)
    offset = torch.tensor(SUBPIXELS, device=pixel.device).T.repeat_interleave(pixel.numel(), 1)
    finer = trace.pixel_rays(rays.packed, size, rays.near.index_select(1, four), four, offset, scale=0.5)
    _, hit, hit_wo = _trace(finer)
    light, without = _light(finer, hit, hit_wo)
    covered = (hit.slot != trace.NOTHING).float()
    return light.view(3, 4, -1).mean(1), without.view(3, 4, -1).mean(1), covered.view(4, -1).mean(0)


def draw_views(
    views: Sequence[SceneView],
    size: tuple[int, int],
    supersample: int,
    smooth_edges: bool,
    device: torch.device | str,
) -> RenderedViews:
    h, w = size
    packed = pack(views, device)
    near, grid = trace.covers(packed, size), (packed.count, h, w)
    pixel = torch.arange(near.shape[1], device=near.device)
    rays = trace.pixel_rays(packed, size, near, pixel, (0.0, 0.0))
    depth, hit, hit_wo = _trace(rays)
    coverage = (hit.slot != trace.NOTHING).float()
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
    owner = torch.where(hit.slot >= 0, packed.parts.owner[part], -1)
    image, wo = (to_display(linear).view(3, *grid).transpose(0, 1) for linear in (light, without))
    inverse, inverse_wo = (torch.where(z < FAR, 1 / z, 0.0).view(grid) for z in (hit.depth, hit_wo.depth))
    part_inverse = torch.where(depth < FAR, 1 / depth, 0.0).view(packed.slots, *grid).transpose(0, 1)
    return RenderedViews(
        image, wo, owner.view(grid), packed.parts.owner.view(packed.count, -1),
        part_inverse, inverse, inverse_wo, coverage.view(grid))  # fmt: skip
