"""Numbers of the published pre-processing for parity tests, and the random decisions behind them.

The repository holds every eighth row and column of them (tests/fixtures/preprocess.npz); the whole arrays are
used when BIFROST_TEST_DATA names the data folder. Inputs are whole in both.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from datasets.inputs import PUBLISHED_INFERENCE, PUBLISHED_TRAINING, AugmentationParams, Inputs
from datasets.masks import perturb_mask

FIXTURE = Path(__file__).parents[1] / "fixtures" / "preprocess.npz"
STEP = 8
SEEDS = (0, 1, 2, 7)
IMAGES = ("in_img", "in_mask", "in_tmask", "in_depth")
# The arrays of inference begin after the 8-bit file of the fused depth.
OPTIONS = {"train": PUBLISHED_TRAINING, "infer": replace(PUBLISHED_INFERENCE, depth_file=False)}


@dataclass(frozen=True)
class Golden:
    """Expected arrays, of which every `step`-th row and column is stored."""

    arrays: dict[str, np.ndarray]
    step: int

    def error(self, name: str, actual: np.ndarray) -> float:
        """Largest absolute difference from the stored values; `actual` is the whole (h, w[, c]) array."""
        part = actual[:: self.step, :: self.step].astype(np.float64)
        assert part.shape == self.arrays[name].shape, (name, part.shape, self.arrays[name].shape)
        return float(np.abs(part - self.arrays[name]).max())

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def load_golden() -> Golden:
    """The whole arrays where the data folder is named, otherwise the stored part."""
    named = os.environ.get("BIFROST_TEST_DATA")
    if named:
        with np.load(Path(named) / "golden" / "preprocess.npz") as stored:
            return Golden(dict(stored), 1)
    with np.load(FIXTURE) as stored:
        arrays = dict(stored)
    for name in IMAGES:
        arrays[name] = cv2.imdecode(arrays[name], cv2.IMREAD_UNCHANGED)
    return Golden(arrays, STEP)


def write_fixture(whole: Path, fixture: Path = FIXTURE) -> None:
    """Make the stored part from the whole arrays; inputs as PNG bytes."""
    with np.load(whole) as stored:
        arrays = dict(stored)
    for name, value in arrays.items():
        if name in IMAGES:
            arrays[name] = cv2.imencode(".png", value, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
        elif value.ndim > 1:
            arrays[name] = value[::STEP, ::STEP]
    np.savez_compressed(fixture, **arrays)


class PublishedStream:
    """The legacy numpy stream that the published code draws from, under the names of a Generator."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)
        self.integers, self.random, self.uniform = (
            self.state.randint,
            self.state.random_sample,
            self.state.uniform,
        )


def golden_inputs(golden: Golden) -> Inputs:
    """The image serves as reference and as target, with two masks."""
    image = golden["in_img"]
    return Inputs(
        reference_u8=image,
        reference_mask=golden["in_mask"] > 0,
        background_u8=image,
        background_depth_01=(golden["in_depth"] / 65535.0).astype(np.float32),
        mode="inpaint",
        target_mask=golden["in_tmask"] > 0,
    )


def published_choices(kind: str, seed: int) -> tuple[AugmentationParams, PublishedStream]:
    """The decisions of the published code for a seed, and its stream after them."""
    stream = PublishedStream(seed)
    if kind == "infer":
        return AugmentationParams(
            crop_ratio=stream.integers(15, 30) / 10, reference_ratio=1.2, mask_level="fine"
        ), stream
    reference_ratio, crop_ratio = stream.integers(11, 15) / 10, stream.integers(13, 30) / 10
    level = "perturbed" if stream.random() < 0.7 else "box"
    return AugmentationParams(
        crop_ratio=crop_ratio, reference_ratio=reference_ratio, mask_level=level
    ), stream


def perturbed_region(
    inputs: Inputs, box_xyxy: tuple[int, int, int, int], stream: PublishedStream
) -> np.ndarray:
    """The published deformation of the target's mask inside the crop, (H, W) bool."""
    x0, y0, x1, y1 = box_xyxy
    region = np.zeros(inputs.background_u8.shape[:2], bool)
    region[y0:y1, x0:x1] = perturb_mask(inputs.target_mask[y0:y1, x0:x1], stream, whole=True)
    return region
