"""The networks that judge images: local files, each with its hash; a missing one is skipped by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ldm.metrics.clip import Clip
from ldm.metrics.clip_resnet import ResnetClip, load_resnet_clip
from ldm.metrics.inception import load_inception
from ldm.metrics.lpips import Lpips, load_lpips
from ldm.metrics.weights import MetricNetworks
from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class BackboneFiles(CheckedSettings):
    """Where the networks lie. `python -m ldm.registry pull NAME` gets them."""

    inception: Path = setting(
        Path("models/inception_fid/pt_inception-2015-12-05-6726825d.pth"), help="Inception-v3 of FID"
    )
    squeezenet: Path = setting(
        Path("models/squeezenet_lpips/squeezenet1_1-b8a52dc0.pth"), help="SqueezeNet 1.1 of LPIPS"
    )
    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIPSim")
    clip_iqa: Path = setting(
        Path("models/clip_iqa/RN50.pt"),
        help="CLIP of CLIP-IQA: OpenAI's RN50.pt (published), or a CLIP folder",
    )


def open_judge(path: Path, device: torch.device) -> Clip | ResnetClip:
    """A CLIP that tells good images from bad ones, by folder or by weight file."""
    return Clip.load(path, device) if path.is_dir() else load_resnet_clip(path, device)


@dataclass
class Backbones(MetricNetworks):
    """The networks that were found."""

    inception: nn.Module | None = None
    lpips: Lpips | None = None
    clip: Clip | None = None
    clip_iqa: Clip | ResnetClip | None = None

    @classmethod
    def load(cls, files: BackboneFiles, device: torch.device) -> Backbones:
        """Every network whose file is there and sound."""
        found = cls()
        found.inception = found.get(
            "inception", files.inception, lambda path: load_inception(path).to(device)
        )
        found.lpips = found.get("squeezenet", files.squeezenet, lambda path: load_lpips(path).to(device))
        found.clip = found.get("clip", files.clip, lambda path: Clip.load(path, device))
        found.clip_iqa = found.get("clip_iqa", files.clip_iqa, lambda path: open_judge(path, device))
        return found
