"""Similarity of two images, RGB (h, w, 3) uint8, and of two sets of n and m images by their d features; 95 %
intervals of means and other statistics by the bootstrap.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torchmetrics.functional.image import structural_similarity_index_measure

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


LEAST_ERROR = 1e-2  # squared gray levels; keeps the PSNR of equal images finite


def squared_error(one_u8: np.ndarray, other_u8: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared difference in gray levels, over mask (h, w) bool where it is given."""
    difference = one_u8.astype(np.float64) - other_u8
    return float(np.square(difference if mask is None else difference[mask]).mean())


def decibels(mean_squared_error: float) -> float:
    """PSNR of 8-bit images, dB."""
    return float(10 * np.log10(255.0**2 / max(mean_squared_error, LEAST_ERROR)))


def psnr_over(result_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB over mask (h, w) bool."""
    return decibels(squared_error(result_u8, truth_u8, mask))


def ssim_over(result_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    """Mean over mask (h, w) bool of the structural similarity map of (h, w, 3) uint8 images; 1 = equal."""
    one, other = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (result_u8, truth_u8))
    _, map_ = structural_similarity_index_measure(one, other, data_range=255.0, return_full_image=True)
    return float(map_[0].mean(0).numpy()[mask].mean())


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """FID (Heusel et al. 2017): |mean difference|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), S the covariances.

    real (n, d), fake (m, d), two rows at least. The eigenvalues of S1 S2 are the squared singular values of
    A B^T, where S1 = A^T A and S2 = B^T B, so no matrix root is needed and nothing complex can appear.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"FID needs at least two images on each side, got {len(real)} and {len(fake)}")
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    means = real.mean(0) - fake.mean(0)
    one, other = _root(real), _root(fake)
    cross = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(max(0.0, means @ means + np.square(one).sum() + np.square(other).sum() - 2 * cross))


def _root(features: np.ndarray) -> np.ndarray:
    """A with A^T A = covariance, (min(n, d), d)."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """KID (Binkowski et al. 2018): unbiased squared MMD, kernel (x y / d + 1)^3; the same for any n and m."""
    n, m, d = len(real), len(fake), real.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least two images on each side, got {n} and {m}")

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one.astype(np.float64) @ other.astype(np.float64).T / d + 1) ** 3

    within_real, within_fake = kernel(real, real), kernel(fake, fake)
    within = (within_real.sum() - np.trace(within_real)) / (n * (n - 1))
    within += (within_fake.sum() - np.trace(within_fake)) / (m * (m - 1))
    return float(within - 2 * kernel(real, fake).mean())


SET_DISTANCES = {"fid": frechet_distance, "kid": kernel_distance}
