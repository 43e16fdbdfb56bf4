"""Composites with soft edges: no fringe of the object's old background; hard ones as before."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compose.settings import ComposeSettings
from compose.sources import make_inputs, read_sources
from datasets.inputs import PairOptions
from datasets.pairs import Geometry

SIDE = 96
Y, X = np.mgrid[0:SIDE, 0:SIDE]
ALPHA = np.clip((30 - np.hypot(X - 48, Y - 48)) / 4 + 0.5, 0, 1)
OBJECT, OLD, NEW = np.array([180, 40, 30.0]), np.array([30, 60, 220.0]), 120


def geometry_of(folder: Path, kind: str, **more: object) -> Geometry:
    """A red disc with a soft edge, photographed before blue or as RGBA, put on gray at its own size."""
    mixed = ALPHA[..., None] * OBJECT + (1 - ALPHA[..., None]) * OLD
    if kind == "rgba":
        pixels = np.dstack([np.broadcast_to(OBJECT, (SIDE, SIDE, 3)), 255 * ALPHA])
    else:
        pixels, more = mixed, {**more, "object_mask": Image.fromarray(ALPHA > 0.5)}
    files = {"background": np.full((160, 200, 3), NEW, np.uint8), "background_depth": None}
    settings = ComposeSettings(
        object=Image.fromarray(np.rint(pixels).astype(np.uint8)), background=files["background"],
        box_px=(70, 50, 130, 110), depth=(0.9,), **more,  # type: ignore[arg-type]
    ).in_fractions((160, 200))  # fmt: skip
    inputs, _ = make_inputs(settings, read_sources(settings), np.full((160, 200), 0.2, np.float32))
    return Geometry.of(inputs, PairOptions(size=(64, 64)))


@pytest.mark.parametrize("kind", ["photograph", "rgba"])
def test_the_rim_shows_the_object_over_the_new_background(tmp_path: Path, kind: str) -> None:
    errors = {}
    for edge in ("soft", "hard"):
        layers = geometry_of(tmp_path, kind, edge=edge).native_layers
        coverage, pasted = layers.coverage_01, layers.paste_u8.astype(float)
        x, y = np.meshgrid(np.arange(coverage.shape[1]), np.arange(coverage.shape[0]))
        (cy, cx) = (float(np.average(axis, weights=coverage)) for axis in (y, x))
        truth = np.clip((30 - np.hypot(x - cx, y - cy)) / 4 + 0.5, 0, 1)[..., None]
        rim = (truth > 0.05) & (truth < 0.95)
        errors[edge] = np.abs(pasted - truth * OBJECT - (1 - truth) * NEW)[rim[..., 0]].mean()
    assert errors["soft"] < 0.65 * errors["hard"]


def test_compat_and_hard_know_no_rim(tmp_path: Path) -> None:
    for more in ({"edge": "hard"}, {"compat": "bifrost"}):
        geometry = geometry_of(tmp_path, "photograph", **more)
        assert geometry.cutout.rim is None
        assert geometry.inputs.reference_alpha_01 is None
    assert geometry_of(tmp_path, "photograph").cutout.rim is not None


def test_the_box_holds_the_mask_and_the_rim_reaches_beyond(tmp_path: Path) -> None:
    soft, hard = (geometry_of(tmp_path, "photograph", edge=edge) for edge in ("soft", "hard"))
    assert soft.fitted_box(soft.window) == hard.fitted_box(hard.window)
    extents = [each.native_layers.placed.alpha_01 > 0 for each in (soft, hard)]
    assert extents[0].sum() > extents[1].sum()
    assert not (soft.native_layers.coverage_01 > 0)[~soft.native_layers.edit].any()


def test_another_edge_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown edge 'round'; allowed: soft, hard"):
        ComposeSettings(background="a.png", object="b.png", box=(0, 0, 1, 1), edge="round")  # type: ignore[arg-type]
