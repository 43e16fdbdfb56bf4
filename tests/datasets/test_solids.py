"""Canonical solids: rays meet them on their surface, normals face the ray, extents are exact."""

import numpy as np
import pytest
import torch

from datasets.scenes.palette import KINDS
from datasets.scenes.solids import PRISM_APOTHEM, PRISM_SIDES, half_extent, meet, normal, support

PARAM = {"torus": 0.35, "capsule": 1.1, "lathe": 37.3, "extrusion": 12.6, "blob": 61.7}


def form(kind: str, q: torch.Tensor, param: float) -> torch.Tensor:
    """Radius (n,) of a lathe, an extrusion or a blob, as docs of `solids._radius` have it."""
    x, y, z = q
    first, second = (param * 0.37) % 1, (param * 0.71) % 1
    if kind == "lathe":
        wave = torch.sin((1.5 + 2.5 * first) * z + 1.7 * param)
        return 0.56 + 0.26 * wave + 0.16 * torch.sin((3 + 3 * second) * z + 3.1 * param)
    if kind == "extrusion":
        return 0.78 + (0.06 + 0.15 * second) * torch.sin((2 + int(5 * first)) * torch.atan2(y, x))
    bumps = [torch.sin(rate * value + shift * param) for rate, value, shift in
             ((2.5, x, 1), (2.7, y, 1.7), (2.3, z, 2.9))]  # fmt: skip
    return 0.64 + 0.115 * sum(bumps)


def inside(kind: str, q: torch.Tensor, param: float) -> torch.Tensor:
    """Signed measure (n,), zero on the surface, negative inside; independent of the intersections."""
    x, y, z = q
    ring = (x * x + y * y).sqrt()
    slope = (1 - z) / 2
    sides = torch.stack([(c * x + s * y).abs() - PRISM_APOTHEM for c, s in PRISM_SIDES]).amax(0)
    return {
        "ellipsoid": lambda: q.norm(dim=0) - 1,
        "box": lambda: q.abs().amax(0) - 1,
        "cylinder": lambda: torch.maximum(ring, z.abs()) - 1,
        "cone": lambda: torch.maximum(ring - slope, z.abs() - 1),
        "torus": lambda: ((ring - 1) ** 2 + z * z).sqrt() - param,
        "capsule": lambda: torch.stack([x, y, z - z.clamp(-param, param)]).norm(dim=0) - 1,
        "pyramid": lambda: torch.maximum(torch.maximum(x.abs(), y.abs()) - slope, z.abs() - 1),
        "dome": lambda: torch.maximum(q.norm(dim=0) - 1, -z),
        "prism": lambda: torch.maximum(sides, z.abs() - 1),
        "lathe": lambda: torch.maximum(ring - form("lathe", q, param), z.abs() - 1),
        "extrusion": lambda: torch.maximum(ring - form("extrusion", q, param), z.abs() - 1),
        "blob": lambda: q.norm(dim=0) - form("blob", q / q.norm(dim=0), param),
    }[kind]()


def some_rays(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays (3, n) from a sphere of radius 5 to points near the middle."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.randn(3, n, generator=generator)
    origin = 5 * origin / origin.norm(dim=0)
    return origin, torch.randn(3, n, generator=generator) * 0.8 - origin


@pytest.mark.parametrize("kind", KINDS)
def test_rays_enter_on_the_surface_and_normals_face_them(kind: str) -> None:
    param = PARAM.get(kind, 0.0)
    origin, direction = some_rays()
    params = torch.full((origin.shape[1],), param)
    enter, leave = meet(kind, origin, direction, params)
    met = enter < leave
    assert 0.05 < met.float().mean() < 0.98
    q = (origin + enter * direction)[:, met]
    assert inside(kind, q, param).abs().max() < 0.006
    cosine = (normal(kind, q, params[met]) * direction[:, met]).sum(0)
    assert (cosine < 0.02).float().mean() > 0.99
    steps = torch.linspace(0, 2, 160)[:, None]
    crossed = torch.stack([inside(kind, origin + t * direction, param) < -0.02 for t in steps]).any(0)
    assert (met | ~crossed).float().mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_support_and_half_extent_bound_the_surface(kind: str) -> None:
    param = PARAM.get(kind, 0.0)
    origin, direction = some_rays()
    enter, leave = meet(kind, origin, direction, torch.full((origin.shape[1],), param))
    q = (origin + enter * direction)[:, enter < leave].double().numpy()
    assert (np.abs(q).max(1) <= np.array(half_extent(kind, param)) + 0.01).all()
    ways = np.random.default_rng(0).normal(size=(40, 3))
    reach = (ways @ q).max(1)
    bound = support(kind, ways, param)
    assert (reach <= bound + 0.02 * np.linalg.norm(ways, axis=1)).all()
    assert (reach >= 0.75 * bound - 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stops_a_segment_is_told_without_the_exact_place(kind: str) -> None:
    origin, direction = some_rays(1200)
    direction = direction * torch.linspace(0.3, 2.5, direction.shape[1])  # ends before, in, behind the solid
    told = list[torch.Tensor]()
    for exact in (True, False):
        for few in torch.arange(origin.shape[1]).split(8):  # of many rays some end where they enter
            param = torch.full((len(few),), PARAM.get(kind, 0.0))
            enter, leave = meet(kind, origin[:, few], direction[:, few], param, exact)
            told.append((enter < leave) & (leave > 0) & (enter < 1))
    found = torch.cat(told).view(2, -1)
    assert torch.equal(found[0], found[1])
    assert 20 < found[0].sum() < 1180
