"""Many images through the pipeline that users call, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import PaintJob, paint_all
from inpainting.tokens import ENCODINGS
from ldm.settings.config import CheckedSettings, setting
from tiny.inpainter.examples import Example
from tiny.regions import box_mask


@dataclass(frozen=True)
class Sampling(CheckedSettings):
    """How images are painted."""

    steps: int = setting(8, low=1, help="denoising steps")
    guidance: float = setting(2.0, low=1.0, help="classifier-free guidance")
    batch: int = setting(16, low=1, help="images painted together; the result does not depend on it")


@dataclass(frozen=True)
class Way(CheckedSettings):
    """How prompts reach their masks.

    rectified: with region maps, else all prompts are joined with periods and read everywhere
    encoding:  one token sequence for all prompts of an image (published), or one for each
    """

    rectified: bool
    encoding: str = setting("separate", choices=ENCODINGS)


def paint_examples(
    pipe: Inpainter, examples: Sequence[Example], seeds: Sequence[int], way: Way, sampling: Sampling
) -> np.ndarray:
    """(n, h, w, 3) uint8."""
    options = PaintOptions(
        steps=sampling.steps, guidance=sampling.guidance, rca=way.rectified, encoding=way.encoding
    )
    painted: list[np.ndarray] = []
    for start in tqdm(range(0, len(examples), sampling.batch), desc="painting", leave=False):
        part = slice(start, start + sampling.batch)
        jobs = [job(*pair) for pair in zip(examples[part], seeds[part], strict=True)]
        painted += [result.image_u8 for result in paint_all(jobs, pipe, options, progress=False)]
    return np.stack(painted)


def job(example: Example, seed: int) -> PaintJob:
    """One example as users would ask for it: masks with their prompts."""
    masks = box_mask(example.boxes, (example.image_u8.shape[0], example.image_u8.shape[1]))
    return PaintJob(example.image_u8, list(zip(masks, example.prompts, strict=True)), (seed,))
