"""Light on surfaces: one ball lamp with soft shadows, light of the sky and of the floor, contact darkening,
gloss.

Every quantity that the removed solid can change (lamp visibility, sky visibility) is computed twice from the
same ray casts, with it and without it; where both agree the two images agree to the last bit. Legend: n
rays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.scenes.surface import Surface
from datasets.scenes.trace import Rays, shadows

# All numbers are chosen by eye, so that rooms look evenly lit and solids stand out; none is a measurement.
LIFT = 0.006  # metres that a shadow ray starts above its surface: above the error of float32 in a room
REACH = 4.5  # radii of a ball beyond which it darkens nothing, exactly
CONTACT = 0.85  # of the sky that a touching ball takes away
FALLOFF = 22.0, 6.0  # light of the lamp: the first over the second plus the squared distance in metres
FRESNEL = 0.04, 0.5  # mirrored part of a glossy surface seen head-on, and what a grazing view adds (Schlick)
HIGHLIGHT = 0.7  # strength of the lamp's highlight
SKY_MIRRORED = 1.6  # the sky is brighter in a mirror than as diffuse light
SHOULDER = 0.75  # light above it is compressed, so that nothing is cut off at 1


@dataclass(frozen=True, eq=False)
class Exposure:
    """Fractions of lamp and sky that reach each point, (n,) in [0, 1]; `_wo` is without the hidden solid."""

    lamp: Tensor
    sky: Tensor
    lamp_wo: Tensor
    sky_wo: Tensor


def expose(rays: Rays, surface: Surface) -> Exposure:
    """Cast shadow rays and gather contact darkening for each point."""
    lamp = rays.at(rays.packed.lamp)
    facing = ((lamp - surface.point) * surface.normal).sum(0) > 0
    seen, seen_wo = shadows(rays, surface.point + LIFT * surface.normal, facing & ~surface.empty)
    # Each part darkens like a ball of its volume: cosine times solid angle, zero beyond REACH radii.
    sky = torch.ones_like(surface.gloss)
    sky_wo = torch.ones_like(sky)
    parts = rays.packed.parts
    for slot in range(rays.packed.slots):
        offset = rays.of_slot(parts.middle, slot) - surface.point
        radius = rays.of_slot(parts.ball_radius, slot)
        square = offset.square().sum(0)
        cosine = ((offset * surface.normal).sum(0) / square.sqrt()).clamp(min=0)
        near = (radius * radius / square).clamp(max=1)
        fade = (1 - square / (REACH * radius + 1e-6).square()).clamp(min=0)
        itself = rays.of_slot(parts.owner, slot) == surface.owner
        left = 1 - torch.where(itself, 0.0, CONTACT * cosine * near * fade)
        sky = sky * left
        sky_wo = torch.where(rays.of_slot(parts.hidden, slot), sky_wo, sky_wo * left)
    return Exposure(seen, sky, seen_wo, sky_wo)


def radiance(rays: Rays, surface: Surface, lamp_visible: Tensor, sky_visible: Tensor) -> Tensor:
    """Linear light (3, n) in [0, 1] towards the camera; a ray that meets nothing is white."""
    packed = rays.packed
    key, sky, bounce = rays.at(packed.key), rays.at(packed.sky), rays.at(packed.bounce)
    way = rays.at(packed.lamp) - surface.point
    square = way.square().sum(0)
    toward_lamp = way / square.sqrt()
    toward_eye = -rays.direction / rays.direction.square().sum(0).sqrt()
    facing = (toward_lamp * surface.normal).sum(0).clamp(min=0)
    lit = lamp_visible * facing * (FALLOFF[0] / (square + FALLOFF[1]))
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
    # Identity up to the shoulder, then a smooth approach to 1.
    rest = 1 - SHOULDER
    over = (light - SHOULDER).clamp(min=0)
    soft = torch.minimum(light, torch.full_like(light, SHOULDER)) + rest * (1 - torch.exp(-over / rest))
    return torch.where(surface.empty, 1.0, soft)


def to_display(light: Tensor) -> Tensor:
    """Linear light -> display values, gamma 1 / 2.2."""
    return light.clamp(0, 1) ** (1 / 2.2)
