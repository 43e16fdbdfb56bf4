"""Relative inverse depth, depth_01 (h, w) float32, 1 = nearest (b batch, n m pixels of the network)."""

import contextlib
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForDepthEstimation, DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from ldm.checkpoints import load_part, load_pretrained
from ldm.device import check_finite
from ldm.experts.segment import u2netp_scores
from ldm.files import file_sha256, hash_folder, located, named_failure, read_json
from ldm.images import fitted, loaded_image, normalize, resize, to_01
from ldm.registry.models import cutout_network

log = logging.getLogger(__name__)

# {"notice": what users read when the network is loaded}; where rules take its place in photographs also {
# "scenes": folder of the network for rendered scenes}
NOTICE_FILE = "depth.json"
# Networks whose output meaning is known here: both predict inverse depth unless the config says metric.
DEPTH_NETWORKS = ("dpt", "depth_anything")
_PIXELS: ContextVar[tuple[int, int]] = ContextVar("network size of the call that a thread is in")
STRONG_SHRINK = 2  # beyond this factor cubic interpolation skips pixels, so areas are averaged instead


@dataclass(frozen=True)
class DepthInput:
    """How an image enters a depth network; the defaults are those of DPT-Large as published."""

    size: int = 384  # pixels; the side that is scaled least gets this length
    multiple_of: int = 32  # both sides become multiples of this
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def network_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the image -> (n, m): aspect kept, scaled as little as possible."""
        scale = min((self.size / side for side in image_size), key=lambda factor: abs(1 - factor))
        h, w = (max(1, round(side * scale / self.multiple_of)) * self.multiple_of for side in image_size)
        return h, w

    def prepare(self, rgb_u8: np.ndarray) -> Tensor:
        """(h, w, 3) uint8 -> (3, n, m) normalised."""
        n, m = self.network_size((rgb_u8.shape[0], rgb_u8.shape[1]))
        shrink = max(rgb_u8.shape[0] / n, rgb_u8.shape[1] / m)
        pixels_01 = to_01(resize(rgb_u8, (n, m), how="area" if shrink > STRONG_SHRINK else "cubic"))
        mean, std = (rearrange(torch.tensor(value), "c -> c 1 1") for value in (self.mean, self.std))
        return (pixels_01 - mean) / std


class DepthEstimator:
    """A monocular depth network from transformers (DPT, Depth Anything) behind one function."""

    by_rules = False  # whether photographs get their depth from rules

    def __init__(self, model: nn.Module, depth_input: DepthInput, metric: bool = False) -> None:
        # metric: the network predicts distance, which is inverted
        self.model, self.input, self.metric = model.eval(), depth_input, metric
        if isinstance(model, DPTForDepthEstimation) and model.backbone is None:
            # The stock class takes its own patch grid for square; with the true one it runs at any aspect.
            model.neck.register_forward_pre_hook(self._add_patch_grid)

    @classmethod
    def load(
        cls, source: Path | str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "DepthEstimator":
        """Load a `save_pretrained` folder, or a hub name that is in the local cache or can be downloaded."""
        facts = read_json(path) if (path := Path(source) / NOTICE_FILE).is_file() else {}
        if "scenes" in facts:
            source = located(facts["scenes"])
        is_hub_name = str(source).count("/") == 1 and not str(source).startswith((".", "/"))
        if not Path(source).is_dir() and not is_hub_name:
            wrong = "is neither a folder nor a hub name of the form owner/name"
            raise ValueError(f"depth model {source} {wrong}")
        with named_failure(f"depth model {source} cannot be read", OSError, ValueError):
            config = AutoConfig.from_pretrained(str(source))
        if config.model_type not in DEPTH_NETWORKS:  # its output would not be understood
            allowed = ", ".join(DEPTH_NETWORKS)
            raise ValueError(f"depth model {source} is of type {config.model_type!r}; allowed: {allowed}")
        if facts:  # made here; transformers' own way takes twice the time
            model = load_part(DPTForDepthEstimation, Path(source), dtype)
        else:
            model = load_pretrained(AutoModelForDepthEstimation, source, config=config, dtype=dtype)
        if facts:
            log.info("%s", facts["notice"])
        metric = getattr(config, "depth_estimation_type", "relative") == "metric"
        depth_input = DepthInput()
        with contextlib.suppress(OSError):  # a folder without this file has the published values of DPT
            stored, _ = DPTImageProcessorPil.get_image_processor_dict(str(source))
            # Pixels per cell of the network's coarsest map, so that images divide into whole cells.
            backbone = config.backbone_config
            if config.model_type == "depth_anything":
                stride = int(config.patch_size)  # its halved map is rounded up
            elif backbone is None or config.is_hybrid:
                stride = 2 * int(config.patch_size)
            else:
                stages = len(getattr(backbone, "depths", (0, 0)))  # a plain backbone is halved by the decoder
                stride = int(backbone.patch_size) * 2 ** (stages - 1)
            size = stored.get("size", depth_input.size)
            depth_input = DepthInput(
                size=int(min(size.values() if isinstance(size, dict) else [size])),
                multiple_of=max(int(stored.get("ensure_multiple_of", 1)), stride),
                mean=tuple(stored.get("image_mean", depth_input.mean)),
                std=tuple(stored.get("image_std", depth_input.std)),
            )
        estimator = cls(model.to(device), depth_input, metric)
        estimator.by_rules = "scenes" in facts
        return estimator

    def estimate(self, image: Any) -> np.ndarray:
        """RGB (h, w, 3) uint8, path, PIL image (`ldm.images.loaded_image`) -> depth_01 (h, w) float32."""
        return self.estimate_many([image])[0]

    def estimate_many(
        self, images: Sequence[Any], *, batch_size: int = 8, enlarge: bool = True
    ) -> list[np.ndarray]:
        """Depth of images of any sizes; those that share a network size run together on a GPU.

        There it depends on the batch in the last of 16 bits; on a CPU every image runs alone.
        enlarge: to the size of the image; otherwise a map has as many pixels as the network's, at most the
        image's, and the proportions of the image
        """
        loaded = [loaded_image(image) for image in images]
        images_u8 = [image.rgb_u8 for image in loaded]
        found: dict[int, np.ndarray] = {}
        if self.by_rules:
            for index, each in enumerate(loaded):
                if each.is_photograph:
                    low_01 = depth_by_rules(each.rgb_u8, cutout_network("auto"))
                    found[index] = full_size(low_01, each.size, enlarge)
        rest = [index for index in range(len(loaded)) if index not in found]
        maps = self.predict([images_u8[index] for index in rest], batch_size, enlarge)
        found |= zip(rest, maps, strict=True)
        return [found[index] for index in range(len(loaded))]

    @torch.inference_mode()
    def predict(
        self, images_u8: Sequence[np.ndarray], batch_size: int = 8, enlarge: bool = True
    ) -> list[np.ndarray]:
        """The network's depth of images (h, w, 3), as of `estimate_many`."""
        if next(self.model.parameters()).device.type == "cpu":  # where it is as fast, and always the same
            batch_size = 1
        groups: dict[tuple[int, int], list[int]] = {}
        found: dict[int, np.ndarray] = {}
        for index, rgb_u8 in enumerate(images_u8):
            groups.setdefault(self.input.network_size(rgb_u8.shape[:2]), []).append(index)
        for indices in groups.values():
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                inverse = self._inverse_depth(torch.stack([self.input.prepare(images_u8[i]) for i in part]))
                for index, map_ in zip(part, inverse, strict=True):
                    # Normalised first, so that bicubic overshoot is cut and not stretched.
                    found[index] = full_size(normalize(map_.numpy()), images_u8[index].shape[:2], enlarge)
        return [found[index] for index in range(len(images_u8))]

    def _add_patch_grid(self, neck: nn.Module, args: tuple[Any, ...]) -> tuple[Any, int, int]:
        patch, (n, m) = int(self.model.config.patch_size), _PIXELS.get()  # type: ignore[union-attr, arg-type]
        return args[0], n // patch, m // patch

    def _inverse_depth(self, pixels: Tensor) -> Tensor:
        """(b, 3, n, m) -> (b, n, m) float32 on the CPU, larger = nearer."""
        weight = next(self.model.parameters())
        _PIXELS.set((pixels.shape[-2], pixels.shape[-1]))
        predicted = self.model(pixel_values=pixels.to(weight.device, weight.dtype)).predicted_depth.float()
        check_finite(predicted, "depth network")
        return (1 / predicted.clamp_min(1e-3) if self.metric else predicted).cpu()


def full_size(low_01: np.ndarray, size: tuple[int, int], enlarge: bool = True) -> np.ndarray:
    """Depth (n, m) in [0, 1] at the size (h, w) of its image, or not enlarged, over the whole range."""
    if not enlarge:
        scale = min(1.0, (low_01.size / (size[0] * size[1])) ** 0.5)
        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    full_01 = resize(low_01, size, how="cubic")
    return normalize(np.clip(full_01, 0, 1, out=full_01), full_01)


def weights_of_depth(folder: Path) -> dict[str, str]:
    """SHA-256, by name, of what decides the depth maps of a folder; empty for a hub name."""
    if not folder.is_dir():
        return {}
    hashes = hash_folder(folder)
    if (rules := folder / NOTICE_FILE).is_file() and "scenes" in (facts := read_json(rules)):
        hashes = {NOTICE_FILE: file_sha256(rules), **hash_folder(located(facts["scenes"]))}
        if network := cutout_network("auto"):
            hashes[network.name] = file_sha256(network)
    return hashes


# Chosen with `benchmarks.depth_photographs` on its four photographs with depth. The horizon leaves the order
# as it is; of ten pairs of its numbers these were best for `benchmarks.placer_photographs`.
# Other numbers are another number of `rules` in assets/depth/depth.json, whose hash recipes hold.
SIDE = 1024  # pixels of the longer side of a photograph whose depth follows from rules
HORIZON, AT_HORIZON = 0.4, 0.1  # row, and depth there: above it walls and sky change little with the row
VIEW = 0.55  # fraction of the width of each of two views, from the left and from the right
FOOT = 99  # percentile of a thing's rows, from the top: where it stands
SLOPE = 0.02  # of the row: a thing's lower parts are a little nearer
LEAST = 0.002  # fraction of the image that a thing fills


def depth_by_rules(rgb_u8: np.ndarray, network: Path | None) -> np.ndarray:
    """Relative inverse depth (n, m) float32 in [0, 1], 1 = nearest, of an image (h, w, 3).

    A lower row is nearer, as on a ground seen from above; a thing that stands out (U2-Netp) is as near as the
    ground at its foot, all of it.

    network: file of U2-Netp; without it only the rows count
    """
    small_u8 = resize(rgb_u8, fitted(rgb_u8.shape[:2], SIDE))
    n, m = small_u8.shape[:2]
    rows = ((np.arange(n, dtype=np.float32) + 0.5) / n)[:, None]
    depth = np.repeat(rows, m, axis=1)
    if network is not None:
        wide = round(VIEW * m)
        views = np.s_[:, :wide], np.s_[:, m - wide :]
        parts_u8 = [np.ascontiguousarray(small_u8[view]) for view in views]
        for view, part_u8, found in zip(views, parts_u8, u2netp_scores(parts_u8, network), strict=True):
            scores = cv2.resize(found, part_u8.shape[1::-1])
            count, pieces = cv2.connectedComponents((scores > 0.5).astype(np.uint8))
            for piece in range(1, count):
                thing = np.zeros((n, m), bool)
                thing[view] = pieces == piece
                if thing.mean() < LEAST:
                    continue
                lines = np.nonzero(thing)[0]
                foot = np.percentile(lines, FOOT)
                depth[thing] = np.maximum(depth[thing], foot / n - SLOPE * (foot / n - (lines + 0.5) / n))
    return np.interp(normalize(depth), (0, HORIZON, 1), (0, AT_HORIZON, 1)).astype(np.float32)
