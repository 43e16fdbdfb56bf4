"""A rough detector from networks that Python packages carry: an ImageNet classifier and sentence vectors.

EfficientNet-Lite0 says at each place of an image which of 1,000 classes it shows, MiniLM which classes a
name means, and U2-Netp where the object ends. It knows no people, no colours and no sides, and refuses what
it does not know. A GroundingDINO or OWL-ViT folder is better; see `ldm.experts.detect`.
Legend: h w pixels, n m places, g side of the grid, c classes. Boxes are fractions of the image.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from ldm.checkpoints import load_pretrained, load_strict
from ldm.device import check_finite
from ldm.experts.segment import things, u2netp_scores
from ldm.files import named_failure, read_json
from ldm.images import Box01, resize
from ldm.registry.models import cutout_network
from ldm.weight_files import open_weights

# EfficientNet-Lite0 (tensorflow/tpu, efficientnet/lite): repeats, kernel, stride, expansion, channels.
BLOCKS = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
          (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
CLASSES, STRIDE = 1000, 32
# What follows is chosen on other images than those of docs/locator.md: single objects, these
# pasted into paintings, and mosaics of photographs, each also asked for 20 things that are not there.
SIDES = (224, 320, 448, 640)  # shorter side of the image for each of its class maps, pixels
GRID = 64  # side of the map of a name
SURE = 0.75  # cosine of a name and a class from which the name is taken as a whole
LEAST_COSINE = 0.58  # of the nearest class; below, no class is meant
SPAN = 0.3  # classes this much further away than the nearest one count nothing
LEAST_SCORE = 0.12  # 5 % of the things that are not there have more, 65 % of those that are
EXTENT = 0.2  # fraction of the peak at which an object ends
MARGIN = 0.15  # of the sides of a box, around which U2-Netp looks for the outline
SAME = 0.2  # least IoU of the outline with what the map shows
WHICH = {
    "left",
    "right",
    "leftmost",
    "rightmost",
    "front",
    "back",
    "rear",
    "middle",
    "first",
    "last",
    "other",
}
PREPOSITIONS = {"in", "on", "with", "of", "at", "to", "by", "under", "behind", "near", "holding", "wearing"}


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME: the odd pixel is added at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        needs = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in x.shape[:1:-1]]
        return super().forward(functional.pad(x, [end for n in needs for end in (n // 2, n - n // 2)]))


class Residual(nn.Sequential):
    """Layers around which the input goes by."""

    def forward(self, x: Tensor) -> Tensor:
        around: Tensor = super().forward(x)
        return x + around


def efficientnet_lite0() -> nn.Sequential:
    """Images (b, 3, h, w), (rgb - 127) / 128, -> logits (b, c, n, m) of each place of STRIDE pixels."""

    def layers(
        inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6()]

    network, channels = layers(3, 32, 3, 2), 32
    for repeats, kernel, stride, expansion, outputs in BLOCKS:
        for step in [stride] + [1] * (repeats - 1):
            inner = channels * expansion
            block = layers(channels, inner) if expansion > 1 else []
            block += layers(inner, inner, kernel, step, groups=inner) + layers(inner, outputs)[:-1]
            network.append((Residual if channels == outputs and step == 1 else nn.Sequential)(*block))
            channels = outputs
    return nn.Sequential(*network, *layers(channels, 1280), nn.Conv2d(1280, CLASSES, 1)).eval()


def load_lite0(folder: Path) -> nn.Sequential:
    """The network with the published weights of the registry's folder, in the order of its layers."""
    file = next(iter(sorted(folder.glob("*.pth"))), folder / "weights.pth")
    stored, network = open_weights(file), efficientnet_lite0()
    needed = network.state_dict()
    if len(stored.shapes) != len(needed):
        raise ValueError(f"{file}: {len(stored.shapes)} weights, EfficientNet-Lite0 has {len(needed)}")
    values = [stored.read(key) for key in stored.shapes]
    values[-2] = values[-2][..., None, None]  # the last layer works at every place
    load_strict(network, dict(zip(needed, values, strict=True)), file)
    return network


class Lite0Features:
    """Image features of the same network, before its classes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Lite0Features":
        """From the registry's folder of the rough detector."""
        return cls(load_lite0(folder)[:-1].to(device))

    @torch.inference_mode()
    def images(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1; the cosine of two rows is their similarity."""
        parameter = next(self.model.parameters())
        small_u8 = np.stack([resize(image, (SIDES[0], SIDES[0])) for image in images_u8])
        pixels = torch.from_numpy(small_u8).movedim(-1, 1).float().sub(127).div(128)
        features = self.model(pixels.to(parameter.device, parameter.dtype)).float().mean((2, 3))
        return functional.normalize(check_finite(features, "image network"), dim=-1).cpu().numpy()


class NameClasses:
    """Which classes of ImageNet a name means, by the cosine of their sentence vectors."""

    def __init__(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.clean: list[str] = read_json(folder / "imagenet1k_clean_names.json", list)
        synonyms = read_json(folder / "imagenet1k_label_to_names.json")
        each = [(c, word.strip()) for c in range(CLASSES) for word in synonyms[str(c)].split(",")]
        self.owners = torch.tensor([c for c, _ in each])
        self.vectors = self.embed(self.clean), self.embed([word for _, word in each])

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Unit vectors (t, d) on the CPU: the mean over the tokens of a text."""
        vectors: dict[str, Tensor] = {}
        order = sorted(set(texts), key=len)  # little padding
        device = next(self.network.parameters()).device
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            tokens = self.tokenizer(chosen, padding=True, return_tensors="pt").to(device)
            hidden, mask = self.network(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
            means = (hidden.float() * mask).sum(1) / mask.sum(1)
            vectors |= zip(chosen, functional.normalize(means, dim=-1).cpu(), strict=True)
        return check_finite(torch.stack([vectors[text] for text in texts]), "text network of the detector")

    def weights(self, name: str) -> Tensor | None:
        """(c,) in [0, 1], 1 for the nearest class; None where none is near, and for one of several.

        Of a name that is near to none the noun ("motorbike" of "blue motorbike") counts half.
        """
        words = name.lower().split()
        if WHICH & {*words}:  # class maps do not tell one of several from another
            return None
        end = next((i for i, word in enumerate(words) if i and word in PREPOSITIONS), len(words))
        clean, synonyms = (known @ self.embed([name.lower(), words[end - 1]]).T for known in self.vectors)
        owners = self.owners[:, None].expand(synonyms.shape)
        both = (clean + torch.full_like(clean, -1).scatter_reduce(0, owners, synonyms, "amax")) / 2  # (c, 2)
        cosines = both[:, 0] if both[:, 0].max() >= SURE else both.mean(1)
        nearest = cosines.max()
        return None if nearest < LEAST_COSINE else ((cosines - nearest) / SPAN + 1).clamp(min=0)


class RoughFinder:
    """Boxes of what a name means, by class maps and U2-Netp."""

    def __init__(self, classifier: nn.Module, words: NameClasses, cutout: Path) -> None:
        self.model = nn.ModuleDict({"classifier": classifier, "words": words.network}).eval()
        self.words, self.cutout = words, cutout
        self.latest: tuple[np.ndarray, list[Tensor]] | None = None  # an image and its class maps

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype) -> "RoughFinder":
        """From the registry's folder; ValueError names what is missing and the command that gets it."""
        cutout = cutout_network("u2netp")
        assert cutout is not None
        classifier = load_lite0(folder)
        with named_failure(f"detector {folder} cannot be loaded", OSError, ValueError):
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        network = load_pretrained(AutoModel, folder, dtype=dtype).to(device)
        return cls(classifier.to(device, dtype), NameClasses(network, tokenizer, folder), cutout)

    @torch.inference_mode()
    def class_maps(self, rgb_u8: np.ndarray) -> list[Tensor]:
        """Probabilities (c, n, m) of each of SIDES, on the CPU; rgb_u8: (h, w, 3)."""
        if (latest := self.latest) is not None and latest[0] is rgb_u8:
            return latest[1]
        h, w = rgb_u8.shape[:2]
        parameter, maps = next(self.model["classifier"].parameters()), []
        for side in SIDES:
            n, m = (max(1, round(length * side / min(h, w) / STRIDE)) * STRIDE for length in (h, w))
            image = torch.from_numpy(resize(rgb_u8, (n, m))).to(parameter.device).movedim(-1, 0)[None]
            logits = self.model["classifier"](((image.float() - 127) / 128).to(parameter.dtype))
            check_finite(logits, "image network of the detector")
            maps.append(logits[0].float().softmax(0).cpu())
        self.latest = rgb_u8, maps
        return maps

    def find(self, rgb_u8: np.ndarray, name: str) -> tuple[Box01, float] | None:
        """The box where an image (h, w, 3) most likely shows what a name means, and its score in [0, 1]."""
        weights = self.words.weights(name)
        if weights is None:
            return None
        each = [
            torch.einsum("c,cnm->nm", weights, probabilities).numpy()
            for probabilities in self.class_maps(rgb_u8)
        ]
        grid = np.mean([resize(values, (GRID, GRID), how="linear") for values in each], axis=0)
        score = float(grid.max())
        if score < LEAST_SCORE:
            return None
        _, pieces = cv2.connectedComponents((grid >= EXTENT * score).astype(np.uint8), connectivity=4)
        piece = pieces == pieces[np.unravel_index(grid.argmax(), grid.shape)]
        x0, y0, x1, y1 = self.outlined(rgb_u8, things(piece)[0], np.where(piece, grid, 0).astype(np.float32))
        return (float(x0), float(y0), float(x1), float(y1)), score

    def outlined(self, rgb_u8: np.ndarray, box01: Box01, grid: np.ndarray) -> Box01:
        """The box of the object that U2-Netp sees at a box, if it is about the same; else the box.

        grid: (g, g) where the object is likely, 0 outside its piece
        """
        (h, w), (x0, y0, x1, y1) = rgb_u8.shape[:2], box01
        across, along = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
        left, top = int(max(0, x0 - across) * w), int(max(0, y0 - along) * h)
        right, bottom = math.ceil(min(1, x1 + across) * w), math.ceil(min(1, y1 + along) * h)
        window = np.s_[top:bottom, left:right]
        (scores,) = u2netp_scores([np.ascontiguousarray(rgb_u8[window])], self.cutout)
        _, pieces = cv2.connectedComponents((scores > 0.5).astype(np.uint8))
        likely = resize(resize(grid, (h, w), how="linear")[window], scores.shape, how="linear")
        sums = np.bincount(pieces.ravel(), likely.ravel())
        sums[0] = 0  # the background
        outline, near = pieces == sums.argmax(), likely > 0
        if not sums.any() or (outline & near).sum() < SAME * (outline | near).sum():
            return box01
        a, b, c, d = things(outline)[0]
        wide, high = right - left, bottom - top
        return (left + a * wide) / w, (top + b * high) / h, (left + c * wide) / w, (top + d * high) / h
