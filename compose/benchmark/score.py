"""Score a folder of composites against a benchmark manifest; ours or those of any other system.

    python -m compose.benchmark score --results outputs/benchmark --manifest outputs/benchmark.json \
        --instances data/COCO/annotations/instances_val2017.json --images data/COCO/val2017 \
        --objects data/DreamBooth/objects --out outputs/score.json

Results are images named by the case: CASE.png or CASE.jpg, of the background's size. Nothing of how they
were made is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from compose.benchmark.measures import crop, drift, order, placed_mask, seam
from compose.benchmark.report import Scores, markdown, score_report, score_sheet
from datasets.benchmark.manifest import BenchmarkCase, Instances, Manifest, file_path, read_benchmark
from datasets.geometry import bbox_of_mask
from ldm.device import pick_device
from ldm.experts.depth import DepthEstimator
from ldm.files import file_sha256, hash_folder, write_all_atomic
from ldm.images import read_image
from ldm.metrics.clip import Clip
from ldm.metrics.dino import Dino
from ldm.metrics.inception import load_inception
from ldm.metrics.weights import MetricNetworks
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreSettings(CheckedSettings):
    """Composites of a benchmark, and the networks that judge them."""

    results: Path = setting(help="folder of composites CASE.png")
    manifest: Path = setting(help="benchmark manifest, written by the verb build")
    images: Path = setting(was=("pictures",), help="folder of the manifest's backgrounds")
    objects: Path = setting(help="folder of the manifest's objects")
    against: Path | None = setting(None, help="second folder of composites, for paired differences")
    instances: Path | None = setting(None, help="COCO instances JSON of the manifest, for the depth order")
    dino: Path = setting(Path("models/dino_vits16"), help="DINO folder (ViT-S/16 as published)")
    dinov2: Path = setting(Path("models/dinov2_giant"), help="DINOv2 folder")
    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIP-I")
    dreamsim: Path = setting(Path("models/dreamsim"), help="DreamSim folder (needs the package dreamsim)")
    inception: Path = setting(
        Path("models/inception_fid/pt_inception-2015-12-05-6726825d.pth"), help="Inception-v3 of FID and KID"
    )
    real: Path | None = setting(
        None, help="folder of real images for FID and KID; without it the backgrounds"
    )
    depth_model: Path = setting(Path("assets/tiny/depth"), help="depth network for the order in results")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers; table and sheet go beside it")


@dataclass
class Judges:
    """The networks that were found."""

    found: MetricNetworks
    similarity: dict[str, Any]  # name -> object with images(list of images) -> (b, d) of length 1
    inception: torch.nn.Module | None
    depth: DepthEstimator

    @classmethod
    def load(cls, settings: ScoreSettings) -> Judges:
        device = pick_device(settings.device)
        found = MetricNetworks()
        loaders = {
            "dino": (settings.dino, lambda path: Dino.load(path, device)),
            "dinov2": (settings.dinov2, lambda path: Dino.load(path, device)),
            "clip_i": (settings.clip, lambda path: Clip.load(path, device)),
            "dreamsim": (settings.dreamsim, lambda path: load_dreamsim(path, device)),
        }
        similarity = {name: found.get(name, path, load) for name, (path, load) in loaders.items()}
        inception = found.get("inception", settings.inception, lambda path: load_inception(path).to(device))
        depth = DepthEstimator.load(settings.depth_model, device=str(device))
        found.used["depth"] = {
            "path": settings.depth_model.as_posix(),
            "sha256": hash_folder(settings.depth_model),
        }
        known = {name: network for name, network in similarity.items() if network is not None}
        return cls(found, known, inception, depth)


class DreamSim:
    """DreamSim's embedding (Fu et al. 2023) behind the interface of the other networks."""

    def __init__(self, model: Any, prepare: Any, device: torch.device) -> None:
        self.model, self.prepare, self.device = model, prepare, device

    @torch.inference_mode()
    def images(self, images_u8: list[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1."""
        pixels = torch.cat([self.prepare(Image.fromarray(one)) for one in images_u8]).to(self.device)
        return torch.nn.functional.normalize(self.model.embed(pixels).float(), dim=-1).cpu().numpy()


def load_dreamsim(folder: Path, device: torch.device) -> DreamSim:
    """The package does the loading; it is not among the core requirements."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; `python -m ldm.registry pull dreamsim`")
    try:
        from dreamsim import dreamsim
    except ImportError as error:
        raise ValueError("the package dreamsim is not installed: pip install dreamsim") from error
    model, prepare = dreamsim(pretrained=True, cache_dir=str(folder), device=str(device))
    return DreamSim(model, prepare, device)


def find_result(folder: Path, case: BenchmarkCase) -> Path:
    """The image of a case; ValueError names it when it is absent."""
    for path in (folder / f"{case.id}.png", folder / f"{case.id}.jpg"):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has no composite {case.id}.png for a case of the manifest")


def score_case(
    case: BenchmarkCase, roots: dict[str, Path], result: Path, judges: Judges, instances: Instances | None
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of one composite, and (object on white, background, result) for the sheet."""
    before_u8 = read_image(file_path(f"pictures/{case.background}", roots)).rgb_u8
    after_u8 = read_image(result).rgb_u8
    if after_u8.shape != before_u8.shape:
        shown = [f"{one.shape[1]} x {one.shape[0]}" for one in (after_u8, before_u8)]
        raise ValueError(f"{result} is {shown[0]} pixels, its background is {shown[1]}")
    object_u8 = on_white(file_path(f"objects/{case.object}/{case.view}", roots))
    numbers = {**drift(before_u8, after_u8, case.box01_xyxy), "seam": seam(before_u8, after_u8)}
    for name, network in judges.similarity.items():
        one, other = network.images([crop(after_u8, case.box01_xyxy), object_u8])
        numbers[name] = float(one @ other)
    if instances is not None:
        placed = placed_mask(before_u8, after_u8, case.box01_xyxy)
        depth_01 = judges.depth.estimate(after_u8)
        right = order(depth_01, placed, instances.mask(case.anchor.annotation), case.relation)
        if right is not None:
            numbers["depth_order"] = right
    return numbers, (object_u8, before_u8, after_u8)


def on_white(path: Path) -> np.ndarray:
    """The object's tight box, its transparent part white: (h, w, 3) uint8."""
    image = read_image(path)
    if image.alpha_u8 is None:
        return image.rgb_u8
    solid = image.alpha_u8 > 127
    x0, y0, x1, y1 = bbox_of_mask(solid)
    return np.where(solid[..., None], image.rgb_u8, 255).astype(np.uint8)[y0:y1, x0:x1]


def features(network: torch.nn.Module, paths: list[Path], device: torch.device) -> np.ndarray:
    """(n, 2048) Inception features of images of any size."""
    found = []
    with torch.inference_mode():
        for path in tqdm(paths, desc="inception", disable=None):
            pixels = torch.from_numpy(read_image(path).rgb_u8).permute(2, 0, 1)[None].to(device)
            found.append(network(pixels).cpu().numpy())
    return np.concatenate(found)


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score a folder of composites, or two in pairs; ours or those of any other system."""
    manifest, device = read_benchmark(settings.manifest), pick_device(settings.device)
    roots = {"pictures": settings.images, "objects": settings.objects}
    folders = [settings.results, *([settings.against] if settings.against else [])]
    for folder in folders:
        for case in manifest.cases:
            find_result(folder, case)
    judges = Judges.load(settings)
    instances = Instances(settings.instances) if settings.instances else None
    if instances is None:
        judges.found.skipped["depth_order"] = (
            "--instances is not given, so the outlines of anchors are unknown"
        )
    scored = [_score_folder(folder, roots, manifest, judges, instances) for folder in folders]
    if judges.inception is not None:
        real = features(judges.inception, list(_real(settings.real, manifest, roots)), device)
        for folder, scores in zip(folders, scored, strict=True):
            made = [find_result(folder, case) for case in manifest.cases]
            scores.features = features(judges.inception, made, device)
            scores.real = real
    body = {
        "manifest": {"path": settings.manifest.as_posix(), "sha256": file_sha256(settings.manifest)},
        "networks": judges.found.used,
        "skipped": judges.found.skipped,
        **score_report(scored),
    }
    table = markdown(body)
    log.info("%s", table)
    if (out := settings.out) is not None:
        text = json.dumps(body, indent=1, allow_nan=False) + "\n"
        write_all_atomic({out: text.encode(), out.with_suffix(".md"): table.encode(),
                          out.with_name(f"{out.stem}_sheet.png"): score_sheet(scored[0])})  # fmt: skip
    return body


def _score_folder(
    folder: Path, roots: dict[str, Path], manifest: Manifest, judges: Judges, instances: Instances | None
) -> Scores:
    scores = Scores(folder.as_posix())
    for case in tqdm(manifest.cases, desc=folder.name, disable=None):
        scores.add(case, *score_case(case, roots, find_result(folder, case), judges, instances))
    return scores


def _real(folder: Path | None, manifest: Manifest, roots: dict[str, Path]) -> Iterator[Path]:
    """The real images of FID."""
    if folder is None:
        yield from (file_path(name, roots) for name in manifest.files if name.startswith("pictures/"))
        return
    suffixes = (".png", ".jpg", ".jpeg")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if len(found) < 2:
        raise ValueError(f"--real: {folder} holds {len(found)} images, at least 2 are needed")
    yield from found
