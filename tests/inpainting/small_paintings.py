"""Small paintings with regions and captions, and an untrained inpainter with the real classes, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from tiny.inpainter.model import create
from tiny.settings import InpainterNetworks

SIDE = 32  # pixels of the training crop
NETWORK = InpainterNetworks(
    latent_size=8,
    block_channels=(16, 32),
    heads=(1, 2),
    attention=(True, True),
    norm_groups=8,
    text_width=32,
    text_layers=1,
    text_heads=2,
)
COLOURS = ("red", "green", "blue", "yellow", "cyan")


def write_inpainter(folder: Path, seed: int = 0) -> Path:
    """A model folder in the stock layout; milliseconds per step."""
    with torch.random.fork_rng():
        model, tokenizer = create(NETWORK, seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
        model.save_folder(tokenizer, vae, folder, torch.float32)
    return folder


def write_paintings(folder: Path, counts: dict[str, int], size: tuple[int, int] = (40, 52)) -> Path:
    """images/, masks/ and entities/ of the painting data: image k of a split has 1 + k % 3 regions."""
    h, w = size
    for split, count in counts.items():
        for k in range(count):
            stem = f"{split}_{k}"
            rng = np.random.default_rng((len(split), k))
            image = rng.integers(0, 256, (h // 4, w // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
            entries = {}
            for j in range(1 + k % 3):
                top, left = 6 + 9 * j, 12 + 8 * j
                mask = np.zeros((h, w), np.uint8)
                mask[top : top + 8, left : left + 10] = 255
                save(folder / "masks" / stem / f"mask_{j}.png", mask)
                save(folder / "entities" / stem / f"mask_{j}.png", image[top : top + 8, left : left + 10])
                concept = f"{COLOURS[(j + k) % 5]} cube"
                entries[f"mask_{j}"] = {
                    "concept": concept, "noun_chunk_root": "cube", "caption": f"a {concept}"
                }  # fmt: skip
            save(folder / "images" / split / f"{stem}.jpg", image)
            text = json.dumps(entries)
            (folder / "entities" / stem / "annotations.json").write_text(text, encoding="utf-8")
    return folder


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
