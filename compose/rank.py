"""Which of several samples are the best, by measures that need no truth.

geometry  the depth that is estimated on a sample, at the object, against the depth that was asked for;
          whether it shows what hides the object as nearer; how much changed along the edge of the edit region
identity  the cosine of image features of the object's image and of the object in the sample (DINO, or the
          ImageNet network of the built-in detector)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cldm.evaluate.cases import order_is_right
from compose.models import Models
from compose.settings import ComposeSettings
from datasets.geometry import tight_slices
from ldm.experts.builtin import Lite0Features
from ldm.metrics.clip import Dino
from ldm.registry.models import BUILTIN_FOLDER, resolve_model_path

DINO = Path("models/dino_vits16")


def similarity_network(models: Models) -> Any:
    """DINO, or the ImageNet network; ValueError says how to get one."""
    for folder, load in ((DINO, Dino.load), (BUILTIN_FOLDER, Lite0Features.load)):
        if (place := resolve_model_path(folder)).is_dir():
            return models.once(place, load)
    pull = "python -m ldm.registry pull"
    raise ValueError(f"--rank-by identity needs an image network: {pull} dino-vits16, or builtin-detector")


def keep_best(result: Any, settings: ComposeSettings, models: Models) -> Any:
    """The `best` samples of a `compose.pipeline.Result`, the best first; the report has the scores of all."""
    measure = geometry_scores if settings.rank_by == "geometry" else identity_scores
    scores = [{"seed": seed, **s} for seed, s in zip(result.seeds, measure(result, models), strict=True)]
    order = sorted(range(len(scores)), key=lambda index: -scores[index]["score"])[: settings.best]
    lists: dict[str, Any] = {name: getattr(result, name) for name in ("images", "seeds", "painted_u8")}
    kept: dict[str, Any] = {name: [values[index] for index in order] for name, values in lists.items()}
    drift = [result.report["drift"][index] for index in order]
    report = {**result.report, "drift": drift, "seeds": kept["seeds"]}
    return replace(result, **kept, report={**report, "ranking": {"by": settings.rank_by, "samples": scores}})


def geometry_scores(result: Any, models: Models) -> list[dict[str, Any]]:
    """Per sample: depth_error, order (None where nothing hides it), seam in gray levels, and score."""
    layers, embed = result.geometry.native_layers, result.geometry.window.embed
    visible, edit, front = embed(layers.visible), result.edit_mask, embed(layers.keep)
    outside = cv2.dilate((~(edit | front)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rim, asked_01 = edit & outside, result.fused_depth_01
    scores = []
    for image in result.images:
        seen_01, free = models.depth.estimate(image.rgb_u8), ~edit
        if free.any() and np.ptp(seen_01[free]) > 0:  # in the units of the known depth
            slope, shift = np.polyfit(seen_01[free], asked_01[free], 1)
            seen_01 = slope * seen_01 + shift
        error = float(np.abs(seen_01 - asked_01)[visible].mean())
        order = order_is_right(seen_01, visible, front, False)
        change = np.abs(image.own_u8.astype(np.int16) - result.background.own_u8)[rim]
        seam = float(change.mean()) if rim.any() else 0.0
        score = -error - seam / 255 - (order is False)
        scores.append({"depth_error": error, "order": order, "seam": seam, "score": score})
    return scores


def identity_scores(result: Any, models: Models) -> list[dict[str, Any]]:
    """Per sample: similarity in [-1, 1], which is the score."""
    inputs, layers = result.geometry.inputs, result.geometry.native_layers
    visible = result.geometry.window.embed(layers.visible)
    shown = [(inputs.reference_u8, inputs.reference_mask)]
    shown += [(each.rgb_u8, visible) for each in result.images]
    cuts = [np.where(mask[..., None], image, np.uint8(255))[tight_slices(mask)] for image, mask in shown]
    reference, *samples = similarity_network(models).images(cuts)
    return [{"similarity": float(each @ reference), "score": float(each @ reference)} for each in samples]
