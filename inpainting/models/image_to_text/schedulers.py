"""How opaque the masks are in the course of training: constant, random, or more and more opaque.

A scheduler has one number as its state, the step. Its opacities follow from (seed, step) or from a generator
that the caller gives, so a run that continues at a step goes on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ldm.seeds import seed_of
from ldm.settings.config import check_settings, setting


class AlphaScheduler(Protocol):
    """Opacities of masks at a step."""

    def set_num_steps(self, num_steps: int) -> None:
        """How many steps the course takes."""

    def set_step(self, step: int) -> None:
        """Go to a step, counted from 0."""

    def increment_step(self) -> None:
        """Go to the next step."""

    def get_alphas(self, size: int, rng: np.random.Generator | None = None) -> list[float]:
        """`size` opacities in [0, 1] at this step."""


class _Steps:
    """The step of a scheduler."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.step = seed, 0

    def set_num_steps(self, num_steps: int) -> None:
        """Without a course there is nothing to set."""

    def set_step(self, step: int) -> None:
        self.step = step

    def increment_step(self) -> None:
        self.step += 1

    def rng(self, given: np.random.Generator | None) -> np.random.Generator:
        return given or np.random.default_rng(seed_of(self.seed, "alpha", self.step))


class ConstantAlphaScheduler(_Steps):
    """Always the same opacity."""

    def __init__(self, alpha: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.alpha = _checked("alpha", alpha)

    def get_alphas(self, size: int, rng: np.random.Generator | None = None) -> list[float]:
        return [self.alpha] * size


class RandomAlphaScheduler(_Steps):
    """Uniform in [start_alpha, end_alpha], for each mask on its own."""

    def __init__(self, start_alpha: float, end_alpha: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.start, self.end = _checked("start_alpha", start_alpha), _checked("end_alpha", end_alpha)

    def get_alphas(self, size: int, rng: np.random.Generator | None = None) -> list[float]:
        return self.rng(rng).uniform(self.start, self.end, size).tolist()


class CurriculumAlphaScheduler(_Steps):
    """Normal around a mean that goes from start to end in num_steps, cut to [start, end]; then the end."""

    def __init__(
        self,
        start_mean_alpha: float,
        end_mean_alpha: float,
        std_dev_alpha: float,
        num_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.start = _checked("start_mean_alpha", start_mean_alpha)
        self.end = _checked("end_mean_alpha", end_mean_alpha)
        if std_dev_alpha < 0:
            raise ValueError(f"std_dev_alpha must be at least 0, got {std_dev_alpha}")
        self.deviation, self.num_steps = std_dev_alpha, num_steps

    def set_num_steps(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def get_alphas(self, size: int, rng: np.random.Generator | None = None) -> list[float]:
        if self.num_steps is None:
            raise ValueError("a curriculum needs its number of steps: call set_num_steps")
        if self.step >= self.num_steps:
            return [self.end] * size
        share = self.step / max(self.num_steps - 1, 1)
        mean = self.start + share * (self.end - self.start)
        low, high = sorted((self.start, self.end))
        return self.rng(rng).normal(mean, self.deviation, size).clip(low, high).tolist()


KINDS = ("constant", "random", "curriculum")


@dataclass(frozen=True)
class AlphaOptions:
    """The opacity of the masks."""

    kind: str = setting("constant", choices=KINDS, help="constant; random; curriculum: start to end")
    start: float = setting(1.0, low=0, high=1, help="the constant, least, or first mean opacity")
    end: float = setting(1.0, low=0, high=1, help="largest, or last mean opacity")
    deviation: float = setting(0.1, low=0, help="of the curriculum's normal distribution")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kind == "random" and self.start > self.end:
            raise ValueError(f"start={self.start} must not be above end={self.end} for kind=random")

    def make(self, seed: int) -> AlphaScheduler:
        """The scheduler of these settings."""
        if self.kind == "constant":
            return ConstantAlphaScheduler(self.start, seed)
        if self.kind == "random":
            return RandomAlphaScheduler(self.start, self.end, seed)
        return CurriculumAlphaScheduler(self.start, self.end, self.deviation, seed=seed)


def _checked(name: str, alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {alpha}")
    return float(alpha)
