"""Composites of a benchmark, and what measures them."""

from dataclasses import dataclass
from pathlib import Path

from ldm.registry.models import DEFAULT_DEPTH
from ldm.result import overwrite_setting
from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class ScoreSettings(CheckedSettings):
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
    depth_model: Path | None = setting(None, help=f"depth network for the order in results; {DEFAULT_DEPTH}")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers; table and sheet go beside it")
    overwrite: bool = overwrite_setting()
