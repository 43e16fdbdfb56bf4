"""A classifier of crops: which colour and which shape stands here? For the evaluation only.

Trained on rendered solids under their boxes; the shown crop is the mask and a rim around it.

Legend: b batch, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ldm.checkpoints import load_strict
from ldm.files import write_atomic
from ldm.settings.config import CheckedSettings, setting
from tiny.inpainter.examples import example
from tiny.inpainter.loop import LoopConfig, fit
from tiny.regions import Box, Views, grown
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

WEIGHTS = "judge.safetensors"
SIDE = 32  # of the crops that the classifier sees, pixels


@dataclass(frozen=True)
class JudgeConfig(CheckedSettings):
    """Size of the classifier and how it learns."""

    width: int = setting(24, low=4, help="channels of the first level, twice as many per level")
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=5000, batch=32, lr=2e-3, ema=0.995, decay=0.6)
    )


class Judge(nn.Module):
    """Two answers from one small convolutional network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        before = 3
        for after in widths:
            for inside in (before, after):
                layers += [nn.Conv2d(inside, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            before = after
        self.features = nn.Sequential(*layers)
        self.colour = nn.Linear(2 * before, len(COLOUR_WORDS))
        self.shape = nn.Linear(before * (SIDE // 8) ** 2, len(SHAPE_WORDS))

    def forward(self, crops_pm1: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 32, 32) in [-1, 1] -> scores of colours (b, 15) and shapes (b, 11)."""
        features = self.features(crops_pm1)
        middle = features[:, :, 1:-1, 1:-1].mean((2, 3))
        return self.colour(torch.cat([features.amax((2, 3)), middle], 1)), self.shape(features.flatten(1))


def crop_pm1(image_u8: np.ndarray, box: Box) -> np.ndarray:
    """What the judge sees of a mask: the box with a rim of a tenth, scaled to (3, 32, 32) in [-1, 1]."""
    rim = [max(1, round(0.1 * (box[2 + axis] - box[axis]))) for axis in (0, 1)]
    left, top, right, bottom = grown(box, (*rim, *rim), (image_u8.shape[0], image_u8.shape[1]))
    shown = cv2.resize(image_u8[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return shown.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def train(config: JudgeConfig, views: Views, folder: Path) -> tuple[Judge, float]:
    """Learn colour and shape from the solids of `views`; boxes have the margins that masks have."""
    torch.manual_seed(config.loop.seed)
    network = Judge(config.width)
    owners = [(scene, index) for scene, regions in enumerate(views.regions) for index in range(len(regions))]

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((config.loop.seed, step))
        crops, colours, shapes = [], [], []
        for row in rng.integers(len(owners), size=config.loop.batch):
            scene, index = owners[row]
            region = views.regions[scene][index]
            one = example(views, scene, [region], rng)
            crop = crop_pm1(one.image_u8, one.boxes[0])[:, :, :: rng.choice((1, -1))]
            crops.append(crop + rng.normal(0, 0.03 * rng.random(), crop.shape))
            colours.append(COLOUR_WORDS.index(region.name.colour))
            shapes.append(SHAPE_WORDS.index(region.name.shape))
        seen = torch.from_numpy(np.stack(crops)).float()
        colour, shape = network(seen)
        return {
            "colour": nn.functional.cross_entropy(colour.float(), torch.tensor(colours)),
            "shape": nn.functional.cross_entropy(shape.float(), torch.tensor(shapes)),
        }

    network.train()
    seconds = fit(network, losses, config.loop, folder)
    save_judge(network, folder)
    return network.eval(), seconds


def save_judge(network: Judge, folder: Path) -> None:
    """`folder/judge.safetensors`, half precision; everything else about it follows from the shapes."""
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(weights))


def load_judge(folder: Path) -> Judge:
    """The trained classifier of a run or of the bundle."""
    path = folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; train the stage judge first")
    weights = {name: value.float() for name, value in load_file(path).items()}
    network = Judge(weights["features.0.weight"].shape[0])
    load_strict(network, weights, path)
    return network.eval()


@torch.inference_mode()
def verdicts(
    network: Judge, images_u8: Sequence[np.ndarray], boxes: Sequence[Box]
) -> tuple[list[str], list[str]]:
    """The colour and the shape that stand in each box of each image."""
    colours: list[str] = []
    shapes: list[str] = []
    crops = [crop_pm1(*pair) for pair in zip(images_u8, boxes, strict=True)]
    for start in range(0, len(crops), 64):
        colour, shape = network(torch.from_numpy(np.stack(crops[start : start + 64])))
        colours += [COLOUR_WORDS[index] for index in colour.argmax(1).tolist()]
        shapes += [SHAPE_WORDS[index] for index in shape.argmax(1).tolist()]
    return colours, shapes
