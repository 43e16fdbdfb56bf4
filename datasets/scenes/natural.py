"""Natural surfaces and the sky of the open world: tiles of noise that repeat without a seam, looked up at the
width of a ray, so that far surfaces have no aliasing.

The numbers are chosen by eye. Legend: n rays, component first.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datasets.scenes.trace import Rays

SIDE, LEVELS = 256, 8  # of the tile, and how often it is halved for far surfaces
CELLS = 70  # pebbles on a tile
# Rough at all scales; fine; 1 in the middle of a pebble; tone of a pebble.
CLOUD, GRAIN, EDGES, CELL = range(4)


@lru_cache(maxsize=4)
def _tile(device: torch.device) -> Tensor:
    """(m, 4) noise of about zero mean within [-1, 1], the tile and its smaller versions in a row."""
    rng, layers = np.random.default_rng(0), []
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    for exponent in (1.5, 0.6):
        spectrum = np.fft.fft2(rng.standard_normal((SIDE, SIDE)))
        noise = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / SIDE) ** exponent).real
        layers.append(np.clip((noise - noise.mean()) / (2.5 * noise.std()), -1, 1))
    axis, (cx, cy), tones = np.arange(SIDE) / SIDE, rng.random((2, CELLS, 1)), rng.uniform(-1, 1, CELLS)
    dx, dy = (np.abs((axis - centre + 0.5) % 1 - 0.5) for centre in (cx, cy))  # (cells, side)
    distance = np.hypot(dx[:, None, :], dy[:, :, None])
    nearest, second = np.sort(distance, 0)[:2]
    layers += [np.clip((second - nearest) * 24, 0, 2) - 1, tones[distance.argmin(0)]]
    level, levels = np.stack(layers, -1), []
    for _ in range(LEVELS + 1):
        levels.append(level.reshape(-1, 4))
        half = len(level) // 2
        level = level.reshape(half, 2, half, 2, 4).mean((1, 3)) if half else level
    return torch.from_numpy(np.concatenate(levels).astype(np.float32)).to(device)


def noise_at(u: Tensor, v: Tensor, width: Tensor) -> Tensor:
    """(4, n) noise at u, v (n,) in tiles, averaged over about the width (n,) of a ray in tiles."""
    table = _tile(u.device)
    level = (width * SIDE).clamp(min=1).log2().round().clamp(max=LEVELS).long().expand(u.shape)
    side = (SIDE >> torch.arange(LEVELS + 1, device=u.device))[level]
    starts = [sum((SIDE >> i) ** 2 for i in range(k)) for k in range(LEVELS + 1)]
    first = torch.tensor(starts, device=u.device)
    x, y = (u - u.floor()) * side, (v - v.floor()) * side
    x0, y0 = x.floor(), y.floor()
    left, above, start = x0.long() & (side - 1), y0.long() & (side - 1), first[level]
    right, below = (left + 1) & (side - 1), (above + 1) & (side - 1)
    rows, next_rows = start + above * side, start + below * side
    top = torch.lerp(table[rows + left], table[rows + right], (x - x0)[:, None])
    bottom = torch.lerp(table[next_rows + left], table[next_rows + right], (x - x0)[:, None])
    return torch.lerp(top, bottom, (y - y0)[:, None]).T


def natural_look(name: str, u: Tensor, v: Tensor, soft: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction (n,) of the second colour and brightness (n,) of a surface; u, v, soft (n,) in cells."""
    if name == "wood":
        grown = noise_at(u * 0.06 + phase, v * 0.35, soft * 0.2)
        fibres = noise_at(u * 0.12, v * 1.7 + phase, soft)[GRAIN]
        rings = (2 * math.pi * (v * 1.5 + 1.6 * grown[CLOUD])).sin() * (0.08 / soft).clamp(max=1)
        return (0.5 + 0.35 * rings + 0.3 * fibres).clamp(0, 1), 1 + 0.2 * fibres + 0.2 * grown[CLOUD]
    broad = noise_at(u * 0.11 + phase, v * 0.11, soft * 0.11)
    if name == "cloth":
        weave = (u * 44).sin() * (v * 44).sin() * (0.03 / soft).clamp(max=1)
        return (0.5 + 0.3 * weave + 0.3 * broad[GRAIN]).clamp(0, 1), 1 + 0.2 * broad[CLOUD]
    fine = noise_at(u * 0.83, v * 0.83 + phase, soft * 0.83)
    if name == "gravel":
        stones = noise_at(u * 0.3, v * 0.3, soft * 0.3)
        shape = 0.75 + 0.25 * stones[EDGES].clamp(max=0.4)
        return (0.5 + 0.5 * stones[CELL]).clamp(0, 1), shape * (1 + 0.15 * fine[CLOUD] + 0.2 * broad[CLOUD])
    if name == "grass":
        return (0.45 + 0.6 * broad[CLOUD] + 0.35 * fine[GRAIN]).clamp(0, 1), 1 + 0.5 * fine[GRAIN]
    veins = (1 - 9 * (broad[CLOUD] + 0.15 * fine[CLOUD]).abs()).clamp(min=0)  # stone
    return (0.35 + 0.5 * fine[CLOUD] + 0.5 * veins).clamp(0, 1), 1 + 0.2 * broad[CLOUD] + 0.15 * fine[GRAIN]


def sky(rays: Rays, index: Tensor) -> Tensor:
    """Linear light (3, k) of the sky, or of the hills before it, seen by some rays (k,)."""
    room, seen = rays.packed.room, rays.subset(index)
    assert room is not None
    x, y, z = seen.direction / seen.direction.square().sum(0).sqrt()
    horizon, zenith, above = seen.at(room["horizon_rgb"]), seen.at(room["zenith_rgb"]), z.clamp(min=0.02)
    phase, width = seen.at(room["phase"]), seen.footprint.expand(z.shape) / 12
    layer = noise_at(0.07 * x / above + phase, 0.07 * y / above, width / above.square())
    cover = (1.6 * (layer[CLOUD] + 0.25 * layer[GRAIN]) + 2 * seen.at(room["clouds"]) - 1).clamp(0, 1)
    light = torch.lerp(horizon, zenith, above.sqrt())
    light = torch.lerp(light, 0.25 + 0.75 * horizon, cover * (8 * z).clamp(0, 1))
    turn = torch.atan2(x, y) / (2 * math.pi)
    ridge = noise_at(turn * 2 + phase, phase.expand(turn.shape), width)
    top = seen.at(room["skyline"]) * (1 + 0.8 * ridge[CLOUD] + 0.15 * ridge[GRAIN])
    hills = seen.at(room["skyline_rgb"]) * (1 + 0.3 * noise_at(turn * 9, z * 9, width * 9)[CLOUD])
    return torch.where(z < top, hills, light)
