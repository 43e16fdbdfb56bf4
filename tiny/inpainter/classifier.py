"""A classifier of crops, for the evaluation only: which colour and which shape stands here?"""

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from datasets.geometry import Box
from ldm.checkpoints import load_strict
from ldm.files import write_atomic
from ldm.loading import drawing, loading
from tiny.inpainter.examples import make_example
from tiny.loop import Stage
from tiny.regions import Views, grown
from tiny.settings import ClassifierConfig
from tiny.world import COLOUR_WORDS, SHAPE_WORDS

WEIGHTS = "judge.safetensors"  # the name that runs and the bundle have on disk
SIDE = 32  # of the crops that the classifier sees, pixels


class SolidClassifier(nn.Module):
    """Two answers from one small convolutional network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after in (width, 2 * width, 4 * width):
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
    """What the classifier sees of a mask: the box with a rim of a tenth, scaled to (3, 32, 32) in [-1, 1]."""
    rim = [max(1, round(0.1 * (box[2 + axis] - box[axis]))) for axis in (0, 1)]
    left, top, right, bottom = grown(box, (*rim, *rim), image_u8.shape)
    shown = cv2.resize(image_u8[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return shown.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def train_classifier(config: ClassifierConfig, views: Views, out: Path) -> tuple[SolidClassifier, Stage]:
    """Learn colour and shape from the solids of `views`; saves `out/judge.safetensors` in half precision."""
    with drawing(config.loop.seed):
        network = SolidClassifier(config.width)
    solids = [(scene, index) for scene, regions in enumerate(views.regions) for index in range(len(regions))]

    @torch.autocast("cpu", torch.bfloat16, enabled=config.loop.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.loop.seed, step))
        crops, colours, shapes = [], [], []
        for row in rng.integers(len(solids), size=config.loop.batch):
            scene, index = solids[row]
            region = views.regions[scene][index]
            example = make_example(views, scene, [region], rng)
            crop = crop_pm1(example.image_u8, example.boxes[0])[:, :, :: rng.choice((1, -1))]
            crops.append(crop + rng.normal(0, 0.03 * rng.random(), crop.shape))
            colours.append(COLOUR_WORDS.index(region.name.colour))
            shapes.append(SHAPE_WORDS.index(region.name.shape))
        scores = network(torch.from_numpy(np.stack(crops)).float())
        colour, shape = (
            nn.functional.cross_entropy(score.float(), torch.tensor(labels))
            for score, labels in zip(scores, (colours, shapes), strict=True)
        )
        return colour + shape, {"colour": colour.item(), "shape": shape.item()}

    stage = Stage("classifier", network, config.loop, out).train(loss)
    half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    write_atomic(out / WEIGHTS, save(half))
    return network.eval(), stage


@loading()
def load_classifier(folder: Path) -> SolidClassifier:
    """The trained classifier of a run or of the bundle."""
    path = folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; train the stage judge first")
    weights = {name: value.float() for name, value in load_file(path).items()}
    network = SolidClassifier(weights["features.0.weight"].shape[0])
    load_strict(network, weights, path)
    return network.eval()
