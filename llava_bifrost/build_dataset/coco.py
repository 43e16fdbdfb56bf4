"""Counterfactual questions from annotated photographs: remove an object, ask where it was.

Depth is estimated on the filled and on the original image and brought into the frame of the filled one,
which is what the compositor gets as background.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.sources.readers import folder, read_annotated
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator, weights_of_depth
from ldm.experts.erase import Eraser
from ldm.files import read_json, same_file
from ldm.registry.models import depth_for_photographs
from ldm.settings.config import to_plain
from llava_bifrost.build_dataset import published
from llava_bifrost.build_dataset.objects import Photograph, can_be_named, read_instances, remove, unique_names
from llava_bifrost.build_dataset.questions import PreparedPhotograph, reaches
from llava_bifrost.build_dataset.records import Built
from llava_bifrost.settings import CocoBuild

log = logging.getLogger(__name__)

# What decides the contents, beside the weights and the settings of the output.
DECISIVE = ("targets", "replace", "published", "thresholds", "relations", "batch")


class CocoSource:
    """Photographs of an instances file, in the chunks that `build` asks for."""

    def __init__(self, settings: CocoBuild) -> None:
        self.settings, self.chunk = settings, settings.batch
        folder(settings.images, "images")
        path = settings.annotations
        self.photographs = read_instances(read_json(path), path, settings.images)
        self.names = [photograph.name for photograph in self.photographs]
        if not any(same_file(settings.images / photograph.file).is_file() for photograph in self.photographs):
            first = self.photographs[0].file
            raise ValueError(f"images: {settings.images} holds none of the annotated images, as {first}")
        device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, device)
        self.eraser = Eraser.load(settings.eraser, device=str(device), dtype=dtype)
        plain, network = to_plain(settings), depth_for_photographs(settings.depth)
        dtype = pick_dtype(settings.dtype, device, network, "fp32")  # bf16 resolves 8 bits
        self.depth = DepthEstimator.load(network, device=str(device), dtype=dtype)
        self.recipe = {
            "source": "coco",
            "annotations": path.name,
            "eraser": self.eraser.identity,
            "depth": weights_of_depth(network) or network.as_posix(),
            **{key: plain[key] for key in DECISIVE},
        }

    def prepare(self, indices: Sequence[int]) -> list[PreparedPhotograph]:
        threads = self.settings.workers if self.eraser.kind == "opencv" else 1
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._prepare, (self.photographs[index] for index in indices)))

    def finish(self, prepared: Sequence[PreparedPhotograph]) -> list[Built]:
        """Estimate the depth of all images of a chunk together, then make the questions."""
        shown: list[Any] = [item for item in prepared if item.rgb_u8 is not None]
        images = [u8 for item in shown for u8 in (item.rgb_u8, *(gone.filled_u8 for gone in item.removals))]
        maps = iter(self.depth.estimate_many(images, batch_size=self.settings.batch))
        return [
            Built(item.photograph.name, (), item.dropped)
            if item.rgb_u8 is None
            else item.samples(next(maps), [next(maps) for _ in item.removals], self.settings)
            for item in prepared
        ]

    def _prepare(self, photograph: Photograph) -> PreparedPhotograph:
        settings, objects = self.settings, photograph.objects
        rng = np.random.default_rng((settings.seed, photograph.id))
        prepared = PreparedPhotograph(photograph, rng, [])
        if settings.published:
            candidates = published.large_objects(objects)
        else:
            low, high = settings.thresholds.target
            candidates = [index for index, item in enumerate(objects) if low <= item.area <= high
                          and not item.crowd and can_be_named(item.category)]  # fmt: skip
        order = [int(index) for index in rng.permutation(candidates)]
        asks_replace = rng.random() < settings.replace
        try:
            if not order:
                raise Rejected("no target: no " + ("object of the right size" if objects else "annotation"))
            path = settings.images / photograph.file
            rgb_u8, turn = read_annotated(path, photograph.size_hw)
            if turn is not None:
                log.warning("%s is read as stored: its annotations ignore its EXIF orientation", path)
        except (Rejected, ValueError) as error:
            prepared.drop(error)
            return prepared
        for index in order:  # until enough could be removed
            if len(prepared.removals) == settings.targets:
                break
            target, others = objects[index], [other for at, other in enumerate(objects) if at != index]
            boxes = [others[at].box01_xyxy for at in unique_names(others, settings.thresholds.anchor)]
            near = any(reaches(target.box01_xyxy, box, settings.relations.reach) for box in boxes)
            if not near and not settings.published:
                prepared.dropped.append("no relation: nothing near the target has a name of its own")
                continue
            seed = int(rng.integers(2**31))
            try:
                removal = remove(rgb_u8, index, target, settings.thresholds, self.eraser, seed)
                prepared.removals.append(removal)
            except (Rejected, ValueError) as error:
                prepared.drop(error)
        named = candidates if settings.published else unique_names(objects, settings.thresholds.anchor)
        replaced = next((index for index in order if index in named), None) if asks_replace else None
        if prepared.removals or replaced is not None:
            prepared.rgb_u8, prepared.replaced = rgb_u8, replaced
        return prepared
