"""Samples per second of sources with the real pre-processing, beside the published loader's work.

    python -m benchmarks.sources [--out FILE] [--datasets DATASETS.yaml]

Two fabricated sources of frame pairs, 640 x 480 and 1280 x 720; with a settings file also every source in it
whose data are there. CPU seconds per accepted example, so rejections count and a busy machine does not.
`published` does what the published loader does to the same files, in plain OpenCV and NumPy: an augmentation
that is then thrown away, the mask deformed on the whole crop, resizing at the end, float64 arrays.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, write_results
from datasets.geometry import bbox_of_mask, expand_box, square_box, square_padding
from datasets.inputs import Augment, AugmentationParams, PairOptions
from datasets.sources.registry import SOURCES, DatasetsConfig, open_source
from datasets.sources.still import FolderConfig
from ldm.images import normalize, write_depth, write_mask
from ldm.settings.cli import run_module, single_app
from ldm.settings.config import load_config

SIZES = ((480, 640), (720, 1280))
ITEMS, DRAWS = 4, 24
# The published choice of masks: the box with probability 0.3, else the deformed outline.
OPTIONS = PairOptions(augment=replace(Augment(), levels=(0.0, 0.0, 0.7, 0.0, 0.3)))
SIDE, REFERENCE = 512, 224


def published_read(root: Path, item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and mask of the reference, and image, mask and depth of the target, of which it is made."""
    for view in (item, (item + 1) % ITEMS):
        image = cv2.cvtColor(np.asarray(cv2.imread(str(root / "images" / f"{view}.jpg"))), cv2.COLOR_BGR2RGB)
        mask = np.asarray(cv2.imread(str(root / "masks" / f"{view}.png")))[..., 0] > 128
    depth = cv2.imread(str(root / "depth" / f"{view}.png"), cv2.IMREAD_UNCHANGED)
    return image, mask, np.asarray(depth)


def published_perturb(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random local growing and shrinking until the overlap falls below a target, on the whole array."""
    target, (h, w) = rng.uniform(0.3, 0.99), truth.shape
    mask = truth.astype(np.uint8)
    for _ in range(250):
        for _ in range(4):
            left, top = int(rng.integers(w)), int(rng.integers(h))
            part = np.s_[top : int(rng.integers(top + 1, h + 1)), left : int(rng.integers(left + 1, w + 1))]
            form = cv2.MORPH_RECT if rng.random() < 0.25 else cv2.MORPH_ELLIPSE
            kernel = cv2.getStructuringElement(form, (int(rng.integers(3, 10)),) * 2)
            change = cv2.dilate if rng.random() < 0.5 else cv2.erode
            mask[part] = change(mask[part], kernel)
            mask = np.logical_or(mask, truth).astype(np.uint8)
        if np.logical_and(mask, truth).sum() / np.logical_or(mask, truth).sum() < target:
            break
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)


def published_pair(image: np.ndarray, mask: np.ndarray, depth: np.ndarray, rng: Any) -> list[np.ndarray]:
    """Reference view, detail map, collage, mask and depth as the published loader makes them."""
    x0, y0, x1, y1 = bbox_of_mask(mask)
    view = np.where(mask[..., None], image, 255)[y0:y1, x0:x1]
    side = square_padding((y1 - y0, x1 - x0))
    view = np.pad(view, ((side[1], side[3]), (side[0], side[2]), (0, 0)), constant_values=255)
    view = cv2.resize(view.astype(np.uint8), (REFERENCE, REFERENCE))
    # An augmentation that the published loader computes and does not use.
    turn = cv2.getRotationMatrix2D((REFERENCE / 2, REFERENCE / 2), float(rng.uniform(-20, 20)), 1)
    turned = cv2.blur(cv2.warpAffine(view, turn, (REFERENCE, REFERENCE)), (5, 5))
    lab = cv2.cvtColor(turned, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(4.0, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), cv2.COLOR_RGB2HSV)
    large = cv2.resize(view, (256, 256))
    sobel = [cv2.convertScaleAbs(cv2.Sobel(large, cv2.CV_64F, *axes, ksize=3)) for axes in ((1, 0), (0, 1))]
    detail = cv2.resize(cv2.addWeighted(sobel[0], 0.5, sobel[1], 0.5, 0).max(axis=2), (REFERENCE, REFERENCE))
    depth_u8 = np.repeat((255 * normalize(depth)).astype(np.uint8)[..., None], 3, axis=2)
    size = mask.shape[0], mask.shape[1]
    box = expand_box((x0, y0, x1, y1), 1.1, size)
    left, top, right, bottom = square_box(expand_box(box, float(rng.uniform(1.3, 2.9)), size), size, "clip")
    crop = np.s_[top:bottom, left:right]
    inside = np.zeros(mask.shape)
    inside[box[1] : box[3], box[0] : box[2]] = 1
    collage = image[crop].copy()
    gray = np.repeat(detail[..., None], 3, axis=2)
    collage[inside[crop] > 0] = cv2.resize(gray, (box[2] - box[0], box[3] - box[1])).reshape(-1, 3)
    chosen = inside[crop] if rng.random() < 0.3 else published_perturb(mask[crop], rng)
    side = square_padding((bottom - top, right - left))
    pads = ((side[1], side[3]), (side[0], side[2]))
    whole = [np.pad(array, (*pads, (0, 0))) for array in (image[crop], collage, depth_u8[crop])]
    images = [cv2.resize(array, (SIDE, SIDE)).astype(np.float64) / 127.5 - 1 for array in whole]
    edit = cv2.resize(np.pad(chosen, pads, constant_values=2), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return [view / 255.0, *images, np.where(edit == 2, -1, edit)]


def fabricated(h: int, w: int) -> dict[str, float]:
    """CPU milliseconds of our and the published work on the same files: textured, with an elliptic object."""
    from datasets.pairs import build_pair

    y, x = np.mgrid[0:h, 0:w]
    mask = ((x / w - 0.5) / 0.18) ** 2 + ((y / h - 0.5) / 0.28) ** 2 < 1
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        for item in range(ITEMS):
            rng = np.random.default_rng(item)
            noise = rng.integers(0, 256, (h // 4, w // 4, 3), dtype=np.uint8)
            image = cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / "images" / f"{item}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            write_mask(root / "masks" / f"{item}.png", mask)
            smooth = cv2.GaussianBlur(rng.random((h, w), np.float32), (0, 0), h / 20)
            write_depth(root / "depth" / f"{item}.png", normalize(smooth))
        pairs = [f"{item} {(item + 1) % ITEMS}" for item in range(ITEMS)]
        (root / "pairs.txt").write_text("\n".join(pairs), encoding="utf-8")
        source, sample = FolderConfig(root=root).open(), AugmentationParams.sample
        inputs = [source.example(item, np.random.default_rng(item)) for item in range(ITEMS)]
        files = [published_read(root, item) for item in range(ITEMS)]
        works: dict[str, Callable[[int, np.random.Generator], object]] = {
            "ours_read_ms": source.example,
            "ours_pair_ms": lambda k, rng: build_pair(inputs[k], OPTIONS, sample(rng, OPTIONS)),
            "published_read_ms": lambda k, rng: published_read(root, k),
            "published_pair_ms": lambda k, rng: published_pair(*files[k], rng),
        }
        both = {}
        for name, work in works.items():
            work(0, np.random.default_rng(0))  # a warm-up
            start = time.process_time()
            for k in range(DRAWS):
                work(k % ITEMS, np.random.default_rng(k))
            both[name] = round(1000 * (time.process_time() - start) / DRAWS, 2)
    ours_ms, published_ms = (both[f"{who}_read_ms"] + both[f"{who}_pair_ms"] for who in ("ours", "published"))
    pair = round(both["published_pair_ms"] / both["ours_pair_ms"], 1)
    rates = {"ratio_pair": pair, "ratio_all": round(published_ms / ours_ms, 1)}
    return both | rates | {"per_second_and_core": round(1000 / ours_ms, 1)}


def measure_sources(
    out: Out = RESULTS / "sources.json",
    datasets: Annotated[Path | None, typer.Option(help="settings file of further sources")] = None,
) -> None:
    """Measure the sources."""
    import torch

    from datasets.sources.inspection import RejectionStats, accepted_samples

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    results: dict[str, object] = {"fabricated": {f"{w} x {h}": fabricated(h, w) for h, w in SIZES}}
    if datasets is not None:
        settings, measured = load_config(DatasetsConfig, datasets), {}
        for name in SOURCES:
            try:
                source, stats = open_source(settings, name), RejectionStats("")
                start = time.process_time()
                accepted = len(list(accepted_samples(source, stats, OPTIONS, DRAWS, seed=0)))
            except ValueError as error:
                logging.info("left out: %s", error)
                continue
            ms = round(1000 * (time.process_time() - start) / accepted, 2)
            fraction = round(accepted / (accepted + sum(stats.rejected.values())), 3)
            measured[name] = {"ms": ms, "per_second_and_core": round(1000 / ms, 1), "accepted": fraction}
        results["sources"] = measured
    write_results(out, results)


build_app = single_app(measure_sources)

if __name__ == "__main__":
    run_module(build_app)
