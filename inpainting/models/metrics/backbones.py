"""The networks that judge pictures: local files, each with its hash; a missing one is skipped by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.config import check_settings, setting
from ldm.metrics.clip import Clip
from ldm.metrics.inception import load_inception
from ldm.metrics.lpips import Lpips, load_lpips
from ldm.metrics.weights import hash_of

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class BackboneFiles:
    """Where the networks lie. `python -m ldm.registry pull NAME` gets them."""

    inception: Path = setting(
        Path("models/inception_fid/pt_inception-2015-12-05-6726825d.pth"), help="Inception-v3 of FID"
    )
    squeezenet: Path = setting(
        Path("models/squeezenet_lpips/squeezenet1_1-b8a52dc0.pth"), help="SqueezeNet 1.1 of LPIPS"
    )
    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIPSim")
    clip_iqa: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIP-IQA")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class Backbones:
    """The networks that were found. used: name -> file and hashes; skipped: name -> why."""

    inception: nn.Module | None = None
    lpips: Lpips | None = None
    clip: Clip | None = None
    clip_iqa: Clip | None = None
    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, files: BackboneFiles, device: torch.device) -> Backbones:
        """Every network whose file is there and sound."""
        found = cls()
        found.inception = found.get(
            "inception", files.inception, lambda path: load_inception(path).to(device)
        )
        found.lpips = found.get("squeezenet", files.squeezenet, lambda path: load_lpips(path).to(device))
        found.clip = found.get("clip", files.clip, lambda path: Clip.load(path, device))
        same = files.clip_iqa == files.clip and found.clip is not None
        found.clip_iqa = found.get(
            "clip_iqa", files.clip_iqa, lambda path: found.clip if same else Clip.load(path, device)
        )
        return found

    def get(self, name: str, path: Path, load: Callable[[Path], T]) -> T | None:
        try:
            network = load(path)
            self.used[name] = {"path": path.as_posix(), "sha256": hash_of(path)}
            return network
        except (ValueError, OSError) as error:
            self.skipped[name] = " ".join(str(error).split())
            log.warning("skipped: %s: %s", name, self.skipped[name])
            return None

