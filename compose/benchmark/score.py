"""Score a folder of composites against a benchmark manifest; ours or those of any other system.

Results are CASE.png or CASE.jpg, of the background's size; nothing of how they were made is read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from compose.benchmark.report import Scores, score_tables, write_score
from compose.benchmark.settings import ScoreSettings
from datasets.benchmark import BenchmarkCase, Instances, file_path, read_benchmark
from datasets.geometry import Box01, bbox_of_mask, box_to_pixels, expand_box, mask_of_box
from datasets.masks import largest_piece
from datasets.relations import order_is_right
from ldm.device import pick_device
from ldm.experts.depth import DepthEstimator, weights_of_depth
from ldm.files import file_sha256, visible_files
from ldm.images import read_image, resize
from ldm.metrics.backbones import MetricNetworks, inception_features, load_inception
from ldm.metrics.clip import Clip, Dino
from ldm.metrics.numbers import decibels, squared_error
from ldm.registry.models import depth_for_photographs

MARGIN = 1.2  # the region outside which nothing should change, over the box of the object
VISIBLE = 8  # gray levels from which a change is seen; smaller ones are compression or an autoencoder
NEIGHBOUR_DEPTH = 0.05  # of the range; an order of objects that are nearer to each other is unsure (chosen)
SMALLEST = 64  # pixels of a placed object that is seen at all
# Of edges of a pasted rectangle, which show whatever stores or decodes the image afterwards:
SMOOTH = 9  # pixels; over so many the errors of JPEG (blocks of 8) and of noise cancel; chosen
CHANGED = 3.0  # gray levels of a smoothed change that is none of these errors; chosen
NOISE = 3.5  # lower quartiles of the smoothed change: about three standard deviations of noise; chosen
STRIP, GAP = 3, 2  # pixels beside an edge that are compared, and left out at it (a decoder blurs it); chosen
REACH = SMOOTH // 2 + 1  # pixels between an edge and where the smoothed change ends, at most
LEAST = 4  # times SMOOTH: the side of a piece whose edges can be told from an outline; chosen
PARTS = 8  # of an edge; chosen
UNEVEN = 1.5  # mean step over its lower quartile, at most: an outline touches an edge at few points; chosen


class ScoreNetworks:
    """Networks that are there. similarity: name -> one with images(list of images) -> (b, d) of length 1"""

    def __init__(self, settings: ScoreSettings) -> None:
        device, self.record = pick_device(settings.device), MetricNetworks()
        loaders: dict[str, tuple[Path, Callable[..., Any]]] = {
            "dino": (settings.dino, Dino.load), "dinov2": (settings.dinov2, Dino.load),
            "clip_i": (settings.clip, Clip.load), "dreamsim": (settings.dreamsim, DreamSim)}  # fmt: skip
        get = self.record.get
        loaded = {n: get(n, path, partial(load, device=device)) for n, (path, load) in loaders.items()}
        self.similarity = {name: network for name, network in loaded.items() if network is not None}
        self.inception = get("inception", settings.inception, lambda path: load_inception(path).to(device))
        folder = depth_for_photographs(settings.depth_model)
        self.record.used["depth"] = {"path": folder.as_posix(), "sha256": weights_of_depth(folder)}
        self.depth = DepthEstimator.load(folder, device=str(device))


class DreamSim:
    """DreamSim's embedding (Fu et al. 2023) behind the interface of the other networks."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """By the package dreamsim, which is not among the core requirements."""
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; `python -m ldm.registry pull dreamsim`")
        try:
            from dreamsim import dreamsim
        except ImportError as error:
            raise ValueError("the package dreamsim is not installed: pip install dreamsim") from error
        self.model, self.prepare = dreamsim(pretrained=True, cache_dir=str(folder), device=str(device))
        self.device = device

    @torch.inference_mode()
    def images(self, images_u8: list[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1."""
        pixels = torch.cat([self.prepare(Image.fromarray(image)) for image in images_u8]).to(self.device)
        return torch.nn.functional.normalize(self.model.embed(pixels).float(), dim=-1).cpu().numpy()


def seam_contrast(before_u8: np.ndarray, after_u8: np.ndarray) -> float:
    """Step of the change (h, w, 3) across the edges of the largest changed piece, in gray levels.

    Changes are signed and averaged along parts of an edge, so noise and compression cancel and a shift of
    colours does not. 0 where nothing changed, or all of the image. An object with a free outline touches the
    edges of its box at few points and hardly counts.
    """
    change = after_u8.astype(np.float32) - before_u8
    smooth = np.abs(cv2.blur(change, (SMOOTH, SMOOTH))).max(axis=2)
    changed = (smooth > max(CHANGED, NOISE * float(np.quantile(smooth, 0.25)))).astype(np.uint8)
    wide = np.ones((2 * SMOOTH, 2 * SMOOTH), np.uint8)
    changed = cv2.morphologyEx(changed, cv2.MORPH_OPEN, wide)  # without spots of noise at its edges
    if not changed.any():
        return 0.0
    x0, y0, x1, y1 = bbox_of_mask(largest_piece(changed))
    if min(x1 - x0, y1 - y0) < LEAST * SMOOTH:
        return 0.0
    steps, lengths = [], []
    turned = ((change, y0, y1, x0, x1), (change.transpose(1, 0, 2), x0, x1, y0, y1))
    for image, start, end, low, high in turned:
        parts = np.array_split(image[start + REACH : end - REACH], PARTS)  # without the corners
        profile = np.stack([part.mean(axis=0) for part in parts])  # (parts, columns, 3)
        for edge in (low, high):
            if 0 < edge < profile.shape[1]:  # the border of the image is no edge
                columns = range(edge - REACH + 1, edge + REACH)
                steps.append(max(step_at(profile, column) for column in columns))
                lengths.append(end - start)
    return float(np.average(steps, weights=lengths)) if steps else 0.0


def step_at(profile: np.ndarray, column: int) -> float:
    """Mean step of the parts of profile (parts, columns, 3) at a column, if it is there in most of them."""
    inner, outer = profile[:, column + GAP :][:, :STRIP], profile[:, : max(column - GAP, 0)][:, -STRIP:]
    if not inner.size or not outer.size:
        return 0.0
    steps = np.abs(inner.mean(axis=1) - outer.mean(axis=1)).mean(axis=1)
    return float(min(steps.mean(), UNEVEN * np.quantile(steps, 0.25)))


def drift(before_u8: np.ndarray, after_u8: np.ndarray, box01: Box01) -> dict[str, float]:
    """What changed that should not: outside MARGIN times the box (drift_*: fraction of pixels, bytes, PSNR in
    dB, 100: nothing), and across the edges of what was painted (seam: see `seam_contrast`).
    """
    size = (before_u8.shape[0], before_u8.shape[1])
    mask = ~mask_of_box(expand_box(box_to_pixels(box01, size), MARGIN, size), size)
    numbers = {"seam": seam_contrast(before_u8, after_u8)}
    if mask.any():
        changed = before_u8[mask] != after_u8[mask]
        error = squared_error(after_u8, before_u8, mask)
        numbers["drift_pixels"] = float(changed.any(axis=1).mean())
        numbers["drift_bytes"] = float(changed.sum())
        numbers["drift_psnr_db"] = decibels(error) if error else 100.0
    return numbers


def order(
    depth_01: np.ndarray, images: tuple[np.ndarray, np.ndarray], box01: Box01, other: np.ndarray, front: bool
) -> float | None:
    """1 where the re-estimated depth (h, w) shows the object in front of (or behind) another one, else 0.

    images: background and composite, uint8; the object is where something new is seen inside the box, single
    pixels left out. other: (h, w) bool. None where either hides the other completely. An object that is not
    seen at all has no order to show: 0 when it was to stand in front, None when behind, perhaps hidden.
    """
    before_u8, after_u8 = images
    seen = (np.abs(after_u8.astype(np.int16) - before_u8).max(axis=2) > VISIBLE).astype(np.uint8)
    opened = cv2.morphologyEx(seen, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    size = (seen.shape[0], seen.shape[1])
    placed = opened & mask_of_box(box_to_pixels(box01, size), size)
    if placed.sum() < SMALLEST:
        return 0.0 if front else None
    right = order_is_right(depth_01, placed, other & ~placed, front)
    return None if right is None else float(right)


def flipped_paste(
    before_u8: np.ndarray, object_u8: np.ndarray, alpha: np.ndarray, case: BenchmarkCase, anchor: np.ndarray
) -> np.ndarray:
    """The object (h, w, 3) with its mask (h, w) bool pasted into the box in the wrong order, (H, W, 3)."""
    x0, y0, x1, y1 = box_to_pixels(case.box01_xyxy, (before_u8.shape[0], before_u8.shape[1]))
    size, part = (y1 - y0, x1 - x0), np.s_[y0:y1, x0:x1]
    shown = resize(alpha.astype(np.uint8) * 255, size) > 127
    if case.relation == "in front of":  # so it is put behind
        shown = shown & ~anchor[part]
    result_u8 = before_u8.copy()
    result_u8[part] = np.where(shown[..., None], resize(object_u8, size), before_u8[part])
    return result_u8


def orders(
    case: BenchmarkCase,
    images: tuple[np.ndarray, np.ndarray],
    cutout: tuple[np.ndarray, np.ndarray],
    instances: Instances,
    estimate: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Depth orders of one composite as the judge, a depth network, sees them.

    depth_order:         to the anchor, where the relation is one of depth
    depth_order_flipped: the same of a paste in the wrong order, the control: a good judge gives 0
    depth_order_all:     fraction of all annotated objects that the object meets, in the order that its depth
                         and theirs in the background ask for; those within NEIGHBOUR_DEPTH of it left out
    images: background and composite; cutout: the object (h, w, 3) uint8 and its mask (h, w) bool
    """
    (before_u8, after_u8), box01 = images, case.box01_xyxy
    anchor = instances.mask(case.anchor.annotation)
    depth_01, before_01 = estimate(after_u8), estimate(before_u8)
    found: dict[str, float | None] = {}
    if case.relation in ("in front of", "behind"):
        front = case.relation == "in front of"
        flipped_u8 = flipped_paste(before_u8, *cutout, case, anchor)
        found["depth_order"] = order(depth_01, images, box01, anchor, front)
        wrong = estimate(flipped_u8), (before_u8, flipped_u8)
        found["depth_order_flipped"] = order(*wrong, box01, anchor, front)
    d, met = case.depth_in(anchor, before_01), list[float]()
    for mask in instances.neighbours(case.anchor.annotation, box01):
        away = d - float(np.median(before_01[mask]))
        right = order(depth_01, images, box01, mask, away > 0) if abs(away) >= NEIGHBOUR_DEPTH else None
        met += [] if right is None else [right]
    found["depth_order_all"] = float(np.mean(met)) if met else None
    return {name: value for name, value in found.items() if value is not None}


def score_case(
    case: BenchmarkCase,
    roots: dict[str, Path],
    result: Path,
    networks: ScoreNetworks,
    instances: Instances | None,
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of one composite, and (object on white, background, result) for the sheet."""
    before_u8 = read_image(file_path(f"pictures/{case.background}", roots)).rgb_u8
    after_u8 = read_image(result).rgb_u8
    if after_u8.shape != before_u8.shape:
        shown = [f"{image.shape[1]} x {image.shape[0]}" for image in (after_u8, before_u8)]
        raise ValueError(f"{result} is {shown[0]} pixels, its background is {shown[1]}")
    cutout = read_image(file_path(f"objects/{case.object}/{case.view}", roots))
    object_u8, solid = cutout.rgb_u8, np.ones(cutout.size, bool)
    if cutout.alpha_u8 is not None:  # its tight box
        solid = cutout.alpha_u8 > 127
        x0, y0, x1, y1 = bbox_of_mask(solid)
        object_u8 = np.where(solid[..., None], object_u8, np.uint8(255))[y0:y1, x0:x1]
        solid = solid[y0:y1, x0:x1]
    numbers = drift(before_u8, after_u8, case.box01_xyxy)
    x0, y0, x1, y1 = box_to_pixels(case.box01_xyxy, (after_u8.shape[0], after_u8.shape[1]))
    for name, network in networks.similarity.items():
        placed, original = network.images([after_u8[y0:y1, x0:x1], object_u8])
        numbers[name] = float(placed @ original)
    if instances is not None:
        images, paste = (before_u8, after_u8), (object_u8, solid)
        numbers |= orders(case, images, paste, instances, networks.depth.estimate)
    return numbers, (object_u8, before_u8, after_u8)


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score a folder of composites, or two in pairs; ours or those of any other system."""
    manifest, device = read_benchmark(settings.manifest), pick_device(settings.device)
    roots = {"pictures": settings.images, "objects": settings.objects}
    scored = [Scores(folder) for folder in (settings.results, settings.against) if folder is not None]
    for scores, case in product(scored, manifest.cases):
        files = (scores.folder / f"{case.id}.png", scores.folder / f"{case.id}.jpg")
        if (found := next(filter(Path.is_file, files), None)) is None:
            raise ValueError(f"{scores.folder} has no composite {case.id}.png for a case of the manifest")
        scores.paths.append(found)
    networks = ScoreNetworks(settings)
    instances = Instances(settings.instances) if settings.instances else None
    if instances is None:
        unknown = "--instances is not given, so the outlines of anchors are unknown"
        networks.record.skipped["depth_order"] = unknown
    for scores in scored:
        bar = tqdm(manifest.cases, desc=scores.folder.name, disable=None)
        for case, path in zip(bar, scores.paths, strict=True):
            scores.add(case, *score_case(case, roots, path, networks, instances))
    real = None
    if (inception := networks.inception) is not None:

        def features(paths: Sequence[Path]) -> np.ndarray:
            bar = tqdm(paths, desc="inception", disable=None)
            return inception_features(inception, (read_image(path).rgb_u8 for path in bar), device)

        real_paths = [file_path(name, roots) for name in manifest.files if name.startswith("pictures/")]
        if settings.real is not None:
            suffixes, listed = (".png", ".jpg", ".jpeg"), visible_files(settings.real, "**/*")
            real_paths = [path for path in listed if path.suffix.lower() in suffixes]
            if (count := len(real_paths)) < 2:
                raise ValueError(f"--real: {settings.real} holds {count} images, at least 2 are needed")
        real = features(real_paths)
        for scores in scored:
            scores.features = features(scores.paths)
    body = {
        "manifest": {"path": settings.manifest.as_posix(), "sha256": file_sha256(settings.manifest)},
        "networks": networks.record.used, "skipped": networks.record.skipped, **score_tables(scored, real),
    }  # fmt: skip
    write_score(body, scored[0], settings.out, settings.overwrite)
    return body
