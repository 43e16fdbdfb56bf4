"""95 % intervals of means and other statistics by the bootstrap."""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ldm.settings.choices import BOOTSTRAPS

Estimate = dict[str, float | int]
WIDTH = 1.96  # standard errors on each side of a 95 % interval


def mean_interval(values: Sequence[float] | np.ndarray) -> Estimate:
    """Number, mean and 95 % percentile-bootstrap interval; without an interval below two values."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return {"n": len(array), **({"mean": round(float(array[0]), 4)} if len(array) else {})}
    found = bootstrap((array,), np.mean, method="percentile", n_resamples=BOOTSTRAPS, rng=0)
    low, high = found.confidence_interval
    numbers = {"mean": array.mean(), "low": low, "high": high}
    return {"n": len(array), **{name: round(float(value), 4) for name, value in numbers.items()}}


def percentile_interval(
    statistic: Callable[[np.ndarray], float], count: int, seed: int = 0, resamples: int = BOOTSTRAPS
) -> tuple[float, float]:
    """95 % interval of a statistic of `count` items; statistic: (count,) chosen items -> number."""
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def centred_interval(
    statistic: Callable[[np.ndarray], float], value: float, count: int, seed: int = 0, resamples: int = 50
) -> tuple[float, float]:
    """95 % interval around `value`, as wide as the spread of resamples says.

    For statistics that repeated items bias, such as FID: the percentiles would not hold the value itself.
    """
    rng = np.random.default_rng(seed)
    spread = float(np.std([statistic(rng.integers(count, size=count)) for _ in range(resamples)], ddof=1))
    return value - WIDTH * spread, value + WIDTH * spread


def format_estimate(number: Mapping[str, float] | None, digits: str = ".2f", factor: int = 1) -> str:
    """Mean or value times `factor` with its interval, if it has one: `15.32 [15.01, 15.63]`; `-` for none."""
    number = number or {}
    if (value := number.get("mean", number.get("value"))) is None:
        return "-"
    spread = ", ".join(f"{factor * number[key]:{digits}}" for key in ("low", "high") if key in number)
    return f"{factor * value:{digits}}" + (f" [{spread}]" if spread else "")


def with_interval(statistic: Callable[[np.ndarray], float], items: Sized, seed: int, draws: int) -> Estimate:
    """Value of a statistic of all items, their number, and the 95 % interval of `draws` resamples, if any."""
    value = float(statistic(np.arange(len(items))))
    if len(items) < 2 or not draws:
        return {"value": value, "n": len(items)}
    low, high = percentile_interval(statistic, len(items), seed, draws)
    return {"value": value, "low": low, "high": high, "n": len(items)}


def value_of(table: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """The value of a number in a table; None where it is missing or not finite."""
    value = table.get(name, {}).get("value")
    return None if value is None or not math.isfinite(value) else value
