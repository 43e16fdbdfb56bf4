"""The trained bundle: complete, small enough, described, and good on scenes that no training has seen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cldm.model import load_compositor
from cldm.pipeline import CompositorPipeline
from datasets.augment import relight_room
from datasets.pairs import build_pair
from datasets.pasteback import stitch
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import depth_01, render_shards
from datasets.sources.rendered import RenderedScenes
from ldm.experts.depth import DepthEstimator
from ldm.images import from_pm1
from ldm.metrics.numbers import psnr_over

BUNDLE = Path(__file__).parents[2] / "assets" / "tiny"
LIMITS_MIB = {"compositor": 18, "depth": 6, "locator": 6, "inpainter": 12, "prompter": 6, "shadow": 2}
PARTS = ["compositor", "depth", "locator", "inpainter", "prompter", "shadow"]
SEEDS = 50_000  # of the evaluation split, beyond those that the manifests were measured on


def scenes(folder: Path, window: str, size: int, count: int) -> RenderedScenes:
    settings = StoreSettings(out=folder, count=count, first_seed=SEEDS, split="eval", window=window,
                             size=(size, size), reference_size=(96, 96))  # fmt: skip
    render_shards(settings)
    return RenderedScenes(folder, augment=False)


@pytest.mark.parametrize("part", PARTS)
def test_part_is_within_its_size_and_described(part: str) -> None:
    files = list((BUNDLE / part).rglob("*.safetensors"))
    assert files
    assert sum(file.stat().st_size for file in files) <= LIMITS_MIB[part] * 2**20
    assert max(file.stat().st_size for file in files) <= 16 * 2**20
    manifest = json.loads((BUNDLE / part / "manifest.json").read_text())
    assert manifest["part"] == part
    assert {"seed", "steps", "samples", "minutes", "code_revision", "hardware", "held_out"} <= manifest.keys()
    assert manifest["held_out"]


def test_whole_bundle_is_within_its_size() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file()) <= 48 * 2**20


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> RenderedScenes:
    return scenes(tmp_path_factory.mktemp("held_out"), "object", 96, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lamp", "least_db"), [((1.0, 1.0, 1.0), 1.0), ((0.9, 0.55, 0.3), 2.5)], ids=["as rendered", "warm, dim"]
)
def test_compositor_lights_better_than_the_cut_out(
    held_out: RenderedScenes, lamp: tuple[float, float, float], least_db: float
) -> None:
    model, card = load_compositor(BUNDLE / "compositor")
    gains = []
    for index in range(len(held_out)):
        shown = relight_room(held_out.inputs(index), lamp)
        inputs = replace(shown, target_u8=None)
        pair = build_pair(inputs, card.pair)
        painted = CompositorPipeline(model).paint(pair, [index], card.sampling)[0]
        ours, pasted = (
            stitch(pair.geometry, image, detail=1.0, detail_scale=card.sampling.detail_scale)
            for image in (painted, from_pm1(pair.paste_pm1))
        )
        assert np.array_equal(ours.result_u8[~ours.edit_mask], inputs.background_u8[~ours.edit_mask])
        layers, window = pair.geometry.native_layers, pair.geometry.window
        object_pixels = held_out.silhouette(index) & window.embed(layers.visible)
        if object_pixels.sum() < 40 or shown.target_u8 is None:
            continue
        ours_db, pasted_db = (
            psnr_over(one.result_u8, shown.target_u8, object_pixels) for one in (ours, pasted)
        )
        gains.append(ours_db - pasted_db)
    assert len(gains) >= 50
    assert np.mean(gains) > least_db  # single scenes scatter by 2.5 dB


def test_depth_network_orders_scenes(tmp_path: Path) -> None:
    estimator = DepthEstimator.load(BUNDLE / "depth")
    source, rng = scenes(tmp_path, "full", 128, 8), np.random.default_rng(0)
    right = []
    for index in range(len(source)):
        truth = depth_01(source.array("depth_u16", index)).ravel()
        estimate = estimator.estimate(source.array("image_u8", index)).ravel()
        a, b = rng.integers(truth.size, size=(2, 2000))
        apart = np.abs(truth[a] - truth[b]) > 0.05
        right.append((np.sign(estimate[a] - estimate[b]) == np.sign(truth[a] - truth[b]))[apart].mean())
    assert np.mean(right) > 0.9
