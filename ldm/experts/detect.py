"""Where named things are in an image: zero-shot detection by any transformers folder of a known kind.

Networks get one name at a time, so a box cannot get the wrong name.
Legend: h w pixels. Boxes are (x0, y0, x1, y1) in fractions of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from ldm.checkpoints import load_pretrained
from ldm.device import check_finite, pick_dtype
from ldm.experts.builtin import LEAST_SCORE, RoughFinder
from ldm.files import named_failure
from ldm.images import Box01, rgb_of
from ldm.registry.models import BUILTIN_FOLDER, detector_folder, how_to_get, resolve_model_path

# Kind of network -> (text prompt, lowest accepted score). Scores of the two families differ.
# 0.25 and 0.1 are the defaults of the processors, 0.2 is chosen.
KINDS: dict[str, tuple[str, float]] = {
    "grounding-dino": ("{}.", 0.25),
    "mm-grounding-dino": ("{}.", 0.2),
    "owlvit": ("a photo of a {}", 0.1),
    "owlv2": ("a photo of a {}", 0.1),
}
INNER = 0.7  # fraction of a box, from its middle, that counts as the object where no mask is known (chosen)
OUTLIER_TAIL = 0.05  # fraction of the depths at either end that counts as noise (chosen)


@dataclass(frozen=True)
class Detection:
    name: str
    box01_xyxy: Box01
    score: float  # in [0, 1], the network's own


class Detector:
    def __init__(self, model: nn.Module, processor: Any, kind: str, least_score: float | None = None) -> None:
        self.model, self.processor = model.eval(), processor
        self.words, default = KINDS[kind]
        self.least_score = default if least_score is None else least_score

    @classmethod
    def load(
        cls, folder: Path | str, *, device: str = "cpu", least_score: float | None = None, dtype: str = "auto"
    ) -> "Detector":
        """A `save_pretrained` folder with its processor, or `builtin`. ValueError names what is wrong."""
        folder = detector_folder(Path(folder))
        if not folder.is_dir():
            raise ValueError(f"detector {folder}: no such folder{how_to_get(folder)}")
        precision = pick_dtype(dtype, torch.device(device), folder, "fp32")
        if folder == resolve_model_path(BUILTIN_FOLDER):
            return BuiltinDetector(RoughFinder.load(folder, device, precision))
        with named_failure(f"detector {folder} cannot be loaded", OSError, ValueError, KeyError):
            kind = AutoConfig.from_pretrained(str(folder)).model_type
            if kind not in KINDS:
                raise ValueError(f"it is of type {kind!r}; allowed: {', '.join(KINDS)}")
            processor = AutoProcessor.from_pretrained(str(folder))
        model = load_pretrained(AutoModelForZeroShotObjectDetection, folder, dtype=precision)
        if torch.device(device).type == "cpu":
            for module in model.modules():
                if type(module).__name__ == "MultiScaleDeformableAttention":  # of GroundingDINO
                    module.forward = partial(in_single_precision, module.forward)
        # A parameter that is made by torch.Tensor(...) has not the wished precision yet.
        return cls(model.to(device, precision), processor, kind, least_score)

    @torch.inference_mode()
    def find_all(self, image: Any, name: str) -> list[Detection]:
        """All boxes with an accepted score for the named object, best first. image: as `rgb_of` takes it."""
        rgb_u8 = rgb_of(image)
        text = self.words.format(name)
        prompt: Any = [[text]] if "{}." not in self.words else text
        inputs = self.processor(images=Image.fromarray(rgb_u8), text=prompt, return_tensors="pt")
        weight = next(self.model.parameters())
        output = self.model(**inputs.to(weight.device, weight.dtype))
        output.pred_boxes = check_finite(output.pred_boxes, "detector").float()  # pixels need its digits
        h, w = rgb_u8.shape[:2]
        more = {} if isinstance(prompt, list) else {"text_threshold": 0.0}
        detected = self.processor.post_process_grounded_object_detection(
            output, threshold=self.least_score, target_sizes=[(h, w)], **more
        )[0]
        found = []
        for box, score in zip(detected["boxes"], detected["scores"], strict=True):
            ends = zip(box.tolist(), (w, h, w, h), strict=True)
            x0, y0, x1, y1 = (min(max(end / side, 0.0), 1.0) for end, side in ends)
            if (x1 - x0) * w >= 1 and (y1 - y0) * h >= 1:  # a pixel at least within the image
                found.append(Detection(name, (x0, y0, x1, y1), float(score)))
        return sorted(found, key=lambda one: -one.score)

    def find_names(self, rgb_u8: np.ndarray, names: Sequence[str]) -> dict[str, Detection]:
        """The best box of every name. ValueError lists the names that were not found."""
        found = {name: self.find_all(rgb_u8, name) for name in names}
        if absent := [name for name, boxes in found.items() if not boxes]:
            listed = " and nothing like ".join(map(repr, absent))
            wrong = f"nothing like {listed} was found in the background (least score {self.least_score:g});"
            raise ValueError(f"{wrong} name it with --anchors FILE.json, or a visible object, or give --box")
        return {name: boxes[0] for name, boxes in found.items()}


def in_single_precision(forward: Callable[..., Tensor], value: Tensor, *given: Any) -> Tensor:
    """Sampling by a network's layer. On a CPU torch 2.13 samples large maps of half precision wrongly."""
    floats = (x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in (value, *given))
    return forward(*floats).to(value.dtype)


class BuiltinDetector(Detector):
    """The rough detector: see `ldm.experts.builtin`."""

    def __init__(self, finder: RoughFinder) -> None:
        self.model, self.finder, self.least_score = finder.model, finder, LEAST_SCORE

    def find_all(self, image: Any, name: str) -> list[Detection]:
        """The box of the named object, or none."""
        found = self.finder.find(rgb_of(image), name)
        return [] if found is None else [Detection(name, *found)]


def depth_in_box(
    depth_01: np.ndarray, box01_xyxy: Box01, mask: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(d, far, near) of what a box shows, robust against what else lies in it.

    depth_01: (h, w). mask: (h, w) bool, the object itself; without it the middle ellipse of the box counts.
    returns:  median, and the extent without the outermost 5 per cent at either end
    """
    h, w = depth_01.shape
    x0, y0, x1, y1 = box01_xyxy
    across = (np.arange(w) + 0.5) / w - (x0 + x1) / 2
    along = (np.arange(h) + 0.5) / h - (y0 + y1) / 2
    half_w, half_h = max((x1 - x0) / 2, 1 / w), max((y1 - y0) / 2, 1 / h)
    rows, columns = np.abs(along) <= half_h, np.abs(across) <= half_w
    inside = np.ix_(rows, columns)  # a box costs as much as it is large
    ellipse = (across[columns] / half_w) ** 2 + (along[rows, None] / half_h) ** 2 <= INNER**2
    shown, chosen = depth_01[inside], ellipse if mask is None else mask[inside]
    values = shown[chosen] if chosen.any() else shown
    far, d, near = np.quantile(values, [OUTLIER_TAIL, 0.5, 1 - OUTLIER_TAIL])
    return float(d), float(far), float(near)
