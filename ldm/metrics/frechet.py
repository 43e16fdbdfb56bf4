"""Distances between two sets of images, from their features. Legend: n m images, d features."""

import numpy as np


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
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x y / d + 1)^3.

    real (n, d), fake (m, d). Unlike FID its expectation does not depend on the number of images.
    """
    n, m, d = len(real), len(fake), real.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least two images on each side, got {n} and {m}")

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one.astype(np.float64) @ other.astype(np.float64).T / d + 1) ** 3

    within_real, within_fake = kernel(real, real), kernel(fake, fake)
    within = (within_real.sum() - np.trace(within_real)) / (n * (n - 1))
    within += (within_fake.sum() - np.trace(within_fake)) / (m * (m - 1))
    return float(within - 2 * kernel(real, fake).mean())
