"""What a sampling step may take from other steps: control residuals, deep features of the UNet.

Legend: n samples, b conditions (2 with guidance: unconditional, conditional), c channels, h w latent pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cldm.config import Sampling
from cldm.model import Compositor, Conditions, shared
from ldm.denoise import Schedule

LAST_FULL = 3  # steps at the end that reuse nothing; chosen on four scenes, 20 steps: 2 to 3 dB nearer to all


class Controls:
    """The fused residuals of both control branches at the timesteps of one schedule.

    They depend on hint, tokens and timestep only (other ControlNets read the noisy latent): `count`
    evaluations at even distances, linear between, stand for all. 0, or not fewer: every call evaluates.
    """

    def __init__(
        self,
        model: Compositor,
        conditions: Conditions,
        branches: tuple[float, float],
        timesteps: Sequence[float],
        count: int,
    ) -> None:
        """branches: weights of detail and depth."""
        self.evaluate = partial(
            model.residuals, conditions=conditions, w_detail=branches[0], w_depth=branches[1]
        )
        self.tokens = conditions.tokens
        self.nodes = np.linspace(min(timesteps), max(timesteps), count if count < len(timesteps) else 0)
        self.values: dict[int, list[Tensor]] = {}  # of nodes that were needed

    def at(self, timestep: Tensor) -> list[Tensor]:
        """One residual (b, c, h, w) for each skip of the UNet, the mid block's last."""
        if not len(self.nodes):
            return self.evaluate(timestep)
        position = float(np.interp(float(timestep), self.nodes, range(len(self.nodes))))
        below, above = math.floor(position), math.ceil(position)
        for node in {below, above} - self.values.keys():
            self.values[node] = self.evaluate(timestep.new_tensor(self.nodes[node], dtype=torch.float32))
        pairs = zip(self.values[below], self.values[above], strict=True)
        return [torch.lerp(one, other, position - below) for one, other in pairs]


def make_controls(
    model: Compositor,
    conditions: Conditions,
    branches: tuple[float, float],
    sampling: Sampling,
    schedule: Schedule,
) -> list[Controls]:
    """The residuals of one composite: of all conditions, or of each half where not all steps are guided."""
    times, count = schedule.timesteps.tolist(), sampling.control_evaluations
    guided = [time for time, both in zip(times, schedule.guided(), strict=True) if both]
    if len(conditions.tokens) == 1 or len(guided) == len(times):
        return [Controls(model, conditions, branches, times, count)]
    halves = conditions.halves()
    fewer = math.ceil(count * sum(schedule.acts()) / len(times))  # over a shorter interval
    unconditional = [Controls(model, halves[0], branches, guided, fewer)] if guided else []
    return [*unconditional, Controls(model, halves[1], branches, times, count)]


class Predictor:
    """`predict` of `ldm.denoise.denoise` for one run of a schedule of `total` steps."""

    def __init__(
        self, model: Compositor, controls: Sequence[Controls], sampling: Sampling, total: int
    ) -> None:
        self.model, self.controls = model, controls
        self.every, self.layers, self.left = sampling.reuse_every, sampling.reuse_layers, total
        self.deep: Tensor | None = None  # of the last step that was computed whole
        self.since = 0  # steps that took it over

    def __call__(self, x: Tensor, t: Tensor, both: bool) -> Tensor:
        """x (n or 2n, c, h, w), unconditional half first -> prediction of the same shape, float32."""
        model = self.model
        parts = self.controls if both else self.controls[-1:]
        x, t = x.to(model.unet.dtype), t.to(x.device)
        tokens = torch.cat([part.tokens for part in parts])
        residuals = [torch.cat(each) for each in zip(*(part.at(t) for part in parts), strict=True)]
        times = len(x) // len(tokens)
        tokens, *residuals = [shared(value, times) for value in (tokens, *residuals)]
        if self.every == 1:
            return model.predict(x, t, tokens, residuals).float()
        self.left -= 1
        stale = self.deep is None or len(self.deep) < len(x) or self.left < LAST_FULL
        if stale or self.since == self.every - 1:
            self.deep, self.since = None, -1
        self.since += 1
        deep = None if self.deep is None else self.deep[-len(x) :]  # the conditional half is the last
        prediction, below = model.predict_in_parts(x, t, tokens, residuals, deep, self.layers)
        self.deep = below if deep is None else self.deep
        return prediction.float()
