"""How well `--shadow` darkens the ground that an object stands on: held-out rendered scenes, exact truth.

    python -m benchmarks.shadow [--scenes 300] [--out FILE]

Each scene is rendered with and without one solid; the solid alone is pasted where it stood. Measured on what
the scene shows of the surface it stands on, outside the solid, in luminance. recall: fraction of the true
fall of light that is there; precision: fraction of the fall that is there that is true; psnr_db: of that
ground against the true image; gain_db: the same above "off". With exact depth maps, and with the depth that
compose estimates for the background and the box.
"""

from itertools import product
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, write_results
from ldm.settings.cli import run_module, single_app

LUMINANCE = np.array([0.299, 0.587, 0.114]) / 255
LEVEL = 0.01  # metres within which a pixel belongs to the surface; chosen
DARK, LEAST = 0.03, 30  # a shadow is seen where so many pixels lose so much luminance; chosen
Scenes = Annotated[int, typer.Option(help="held-out scenes with a visible shadow", metavar="INT", min=2)]


def measure_shadows(scenes: Scenes = 300, out: Out = RESULTS / "shadow.json") -> None:
    """Paste solids with each kind of shadow, and compare the ground with the true image."""
    from compose import compose, load_models
    from compose.settings import SHADOWS, ComposeSettings
    from datasets.masks import dilate
    from datasets.scenes import SceneOptions, eval_seed, render, sample_scene
    from datasets.scenes.store import from_01

    options = SceneOptions(size=(256, 256), reference_size=(192, 192), reference_pose="same")
    off, models, index = list[dict[str, float]](), None, 0
    ways = list(product(("exact", "estimated"), SHADOWS[1:]))
    rows: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    while len(off) < scenes:
        scene, index = sample_scene(eval_seed(index), options), index + 1
        batch = render([scene], options)
        colours = batch.image_01, batch.without_01, batch.reference_01
        true_u8, before_u8, object_u8 = (from_01(image[0]) for image in colours)
        fact, solid, depth_01 = batch.facts[0], scene.removed, batch.without_depth_01[0].numpy()
        ground = seen_surface(scene, depth_01, batch.instances[0].numpy())
        ground &= ~dilate(batch.amodal[0, solid].numpy(), 0.01)
        fall = before_u8 @ LUMINANCE - true_u8 @ LUMINANCE
        if (ground & (fall > DARK)).sum() < LEAST:
            continue
        given: dict[str, Any] = {
            "background": before_u8, "object": object_u8, "object_mask": batch.reference_mask[0].numpy(),
            "box": fact.boxes01[solid], "painter": "paste", "edge": "hard", "device": "cpu"}  # fmt: skip
        models = load_models(ComposeSettings(**given), models)
        depths: dict[str, dict[str, Any]] = {
            "exact": {"background_depth": depth_01, "depth": fact.depths[solid][1:],
                      "object_depth": batch.reference_depth_01[0].numpy()},
            "estimated": {"background_depth": models.depth.estimate(before_u8)}}  # fmt: skip
        for by, kind in ways:
            result = compose(ComposeSettings(**given, **depths[by], shadow=kind), models, progress=False)
            covered = result.geometry.window.embed(result.geometry.native_layers.coverage_01 > 0)
            free = ground & ~dilate(covered, 0.01)
            rows[by, kind].append(falls(before_u8, result.images_u8[0], true_u8, free))
        off.append(falls(before_u8, before_u8, true_u8, free))
    tables: dict[str, Any] = {"off": summary(off, off), "exact": {}, "estimated": {}}
    for by, kind in ways:
        tables[by][kind] = summary(rows[by, kind], off)
    write_results(out, {"scenes": scenes, "of": index, **tables})


def seen_surface(scene: Any, depth_01: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels of the surface on which the removed solid stands, that nothing hides.

    depth_01: (h, w) without the solid; owner: (h, w) with it, 0 the room, k the solid k - 1
    """
    (h, w), camera, solid = depth_01.shape, scene.camera, scene.solids[scene.removed]
    level = 0.0 if solid.support < 0 else scene.solids[solid.support].top
    low, high = scene.inverse_range
    x, y = (2 * np.arange(w) + 1) / w - 1, 1 - (2 * np.arange(h)[:, None] + 1) / h
    right, up, forward = camera.axes[:, 2]
    rise = forward + x * camera.tan_x * right + y * camera.tan_y * up  # of a ray, for a metre forward
    height = camera.origin[2] + rise / (low + depth_01 * (high - low))
    return (np.abs(height - level) < LEVEL) & np.isin(owner, (0, solid.support + 1))


def falls(
    before_u8: np.ndarray, after_u8: np.ndarray, true_u8: np.ndarray, ground: np.ndarray
) -> dict[str, float]:
    """Sums over ground (h, w) of the fall of luminance: true, there, and both; and the PSNR there, dB."""
    from ldm.metrics.numbers import psnr_over

    before, after, true = (image[ground] @ LUMINANCE for image in (before_u8, after_u8, true_u8))
    wanted, there = np.maximum(before - true, 0), np.maximum(before - after, 0)
    sums = {"wanted": wanted.sum(), "there": there.sum(), "both": np.minimum(wanted, there).sum()}
    return {**sums, "psnr_db": psnr_over(after_u8, true_u8, ground)}


def summary(rows: list[dict[str, float]], off: list[dict[str, float]]) -> dict[str, Any]:
    """Recall, precision of the pooled fall of light, PSNR and its gain, with 95 % intervals over scenes."""
    from ldm.metrics.numbers import mean_interval, percentile_interval

    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    gains, found = table["psnr_db"] - [row["psnr_db"] for row in off], dict[str, Any]()
    for name, part in (("recall", "wanted"), ("precision", "there")):
        if table[part].sum() > 0:

            def pooled(i: np.ndarray, part: str = part) -> float:
                return float(table["both"][i].sum() / table[part][i].sum())

            low, high = percentile_interval(pooled, len(rows))
            numbers = {"mean": pooled(np.arange(len(rows))), "low": low, "high": high}
            found[name] = {key: round(value, 4) for key, value in numbers.items()}
    return {**found, "psnr_db": mean_interval(table["psnr_db"]), "gain_db": mean_interval(gains)}


build_app = single_app(measure_shadows)

if __name__ == "__main__":
    run_module(build_app)
