"""Random weights of the networks that judge images, in their publishers' file layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model

from ldm.metrics.backbones import Inception, Lpips
from ldm.metrics.clip import ResnetClip


def write_inception(path: Path) -> Path:
    """A PyTorch file of all weights, with statistics that keep the features apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(Inception().state_dict(), path)
    return path


def write_squeezenet(path: Path) -> Path:
    """torchvision's file: features and classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {f"features.{key}": value for key, value in Lpips().features.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.zeros(1000, 512, 1, 1)}, path)
    return path


def write_resnet_clip(path: Path) -> Path:
    """A small CLIP with a ResNet under the names of OpenAI's file, with CLIP's whole vocabulary."""
    sizes = {f"visual.layer{n}.0.conv1.weight": (8, 8, 1, 1) for n in (1, 2, 3, 4)}
    sizes |= {"visual.attnpool.positional_embedding": (5, 256), "transformer.resblocks.0.ln_1.weight": (64,)}
    sizes |= {"text_projection": (64, 12), "positional_embedding": (77, 64)}
    sizes |= {"token_embedding.weight": (49408, 64)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResnetClip({name: torch.zeros(size) for name, size in sizes.items()})
        network.text_projection.data.normal_()
        torch.save(network.state_dict() | {"input_resolution": torch.tensor(224)}, path)
    return path


def write_dino(folder: Path) -> Path:
    """A folder of a small DINOv2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=7, image_size=28
        )
        Dinov2Model(config).save_pretrained(folder)
    return folder
