"""All randomness of one training step, from (seed, number of the batch) alone.

The numbers are drawn for the batches of all devices together and each device takes its part, so what happens
to an example depends neither on the number of devices nor on an interruption.
Legend: b examples of one device, c latent channels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.base import MOVING, STILL

FREE = 0.3  # fraction of examples whose timestep ignores the source's dynamics (published)


@dataclass(frozen=True, eq=False)
class StepRandomness:
    """Random numbers of b examples, on the CPU."""

    noise: Tensor  # (b, c, h, w) normal
    timesteps: Tensor  # (b,) int64, uniform over all timesteps
    drops: Tensor  # (3, b) in [0, 1): identity, detail, depth
    free: Tensor  # (b,) in [0, 1): below FREE the timestep stays as it is

    @classmethod
    def draw(
        cls, seed: int, batch_number: int, shape: Sequence[int], timesteps: int, rank: int = 0, world: int = 1
    ) -> StepRandomness:
        """Of one batch. shape: (b, c, h, w) of one device; timesteps: of the noise schedule."""
        b, count = shape[0], shape[0] * world
        generator = torch.Generator().manual_seed(seed * 1_000_003 + batch_number)
        noise = torch.randn((count, *shape[1:]), generator=generator)
        uniform = torch.randint(0, timesteps, (count,), generator=generator)
        drops = torch.rand((3, count), generator=generator)
        free = torch.rand(count, generator=generator)
        mine = slice(rank * b, (rank + 1) * b)
        return cls(noise[mine], uniform[mine], drops[:, mine], free[mine])

    def timesteps_by_dynamics(self, dynamics: Tensor, timesteps: int) -> Tensor:
        """(b,) int64: the early half for moving sources, the late half for still ones, in 7 cases of 10.

        dynamics: (b,) of `datasets.base`; sources that are BOTH take all timesteps
        """
        half = self.timesteps // 2  # uniform over the late half, where little noise is left
        early, late = half + timesteps // 2, half
        bound = self.free >= FREE
        chosen = torch.where(bound & (dynamics == MOVING), early, self.timesteps)
        return torch.where(bound & (dynamics == STILL), late, chosen)


def shifted_timesteps(chosen: Tensor, shift: float, timesteps: int) -> Tensor:
    """(b,) int64: uniform draws moved towards the noisy end, u -> shift u / (1 + (shift - 1) u), u in (0, 1).

    Esser et al. 2024, equation 23. shift: above 1 noisier, 1 = as drawn, below 1 cleaner
    """
    u = (chosen.double() + 0.5) / timesteps
    moved = shift * u / (1 + (shift - 1) * u) * timesteps
    return moved.long().clamp(0, timesteps - 1)
