"""How well images and their texts agree by CLIP."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import typer
from tqdm.auto import tqdm

from inpainting.data.eval import ClipSettings
from ldm.device import pick_device
from ldm.files import write_json
from ldm.images import read_image
from ldm.metrics.clip import Clip
from ldm.metrics.intervals import WIDTH
from ldm.registry.models import OTHER_FRAMEWORKS, local_or_hub_folder

log = logging.getLogger(__name__)


def score_pairs(settings: ClipSettings) -> dict[str, Any]:
    """Mean cosine between each image and its text (the description of a painting, the caption of a crop)."""
    clip = Clip.load(local_or_hub_folder(settings.clip, OTHER_FRAMEWORKS), pick_device(settings.device))
    scores: list[float] = []
    left_out: dict[str, str] = {}
    images: list[np.ndarray] = []
    texts: list[str] = []
    for name, path, read_text in tqdm(settings.pairs(), unit="images"):
        try:
            image, text = read_image(path).rgb_u8, read_text()
        except ValueError as error:
            log.warning("left out: %s", error)
            left_out[name] = str(error)
            continue
        images.append(image)
        texts.append(text)
        if len(images) == settings.batch_size:
            scores += cosines(clip, images, texts)
            images, texts = [], []
    scores += cosines(clip, images, texts)
    if not scores:
        raise ValueError("there is no image with a text to score")
    mean = float(np.mean(scores))
    typer.echo(f"Final score: {mean}")
    # A mean over so many pairs is normal; a bootstrap would only cost memory.
    spread = WIDTH * float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    numbers = {"pairs": len(scores), "mean_cosine": mean, "low": mean - spread, "high": mean + spread}
    report = {**numbers, "backbone": settings.clip, "left_out": left_out}
    if settings.out is not None:
        write_json(settings.out, report)
    return report


def cosines(clip: Clip, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
    """Cosine of each image (h, w, 3) uint8 with its own text."""
    return (clip.images(images) * clip.texts(texts)).sum(axis=1).tolist() if images else []
