"""Counterfactual questions from annotated photographs: remove an object, ask where it was.

The object is cut out by its own segmentation, dilated; the hole is filled; depth is estimated on the filled
and on the original image and brought into the frame of the filled one, which is what the compositor sees
as background. Removal: build_removal.py, questions: build_questions.py, published rules: build_published.py.

Legend: h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.sources.readers import folder
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.experts.erase import Eraser
from ldm.files import hash_folder, read_json
from ldm.images import read_image
from ldm.settings.config import check_settings, setting, to_plain
from ldm.shards import shard_of
from llava_bifrost.build_dataset import published
from llava_bifrost.build_dataset.files import OutputSettings
from llava_bifrost.build_dataset.names import Photograph, can_be_said, read_instances, unique_names
from llava_bifrost.build_dataset.questions import Prepared, QuestionOptions, ask
from llava_bifrost.build_dataset.records import Built
from llava_bifrost.build_dataset.relations import RelationRules, reaches
from llava_bifrost.build_dataset.removal import Removal, Thresholds, remove

# What decides the contents, beside the weights and the settings of the output.
DECISIVE = ("targets", "replace", "published", "thresholds", "relations", "batch")


@dataclass(frozen=True, kw_only=True)
class CocoBuild(OutputSettings):
    """Questions from photographs with instance annotations."""

    images: Path = setting(help="folder of the images")
    annotations: Path = setting(help="instances JSON file in the format of COCO")
    eraser: str = setting("opencv", help="opencv, a LaMa TorchScript file, or a diffusers inpainting folder")
    depth: str = setting("assets/tiny/depth", help="depth network: folder or hub name")
    targets: int = setting(1, low=1, help="most objects of an image that are removed, one at a time")
    replace: float = setting(0.1, low=0, high=1, help="share of images that also ask to replace an object")
    published: bool = setting(False, help="the published filters and 2D relation rules, for parity")
    thresholds: Thresholds = setting(Thresholds(), help="which objects are used")
    relations: RelationRules = setting(RelationRules(), help="what is said of them; not with published")
    batch: int = setting(8, low=1, help="images per chunk, built together")
    workers: int = setting(2, low=1, help="threads that read and fill")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", help="auto, fp32, fp16 or bf16")

    def __post_init__(self) -> None:
        check_settings(self)
        shard_of(self.shard)


class CocoSource:
    """Photographs of an instances file, in the chunks that `build` asks for."""

    def __init__(self, settings: CocoBuild) -> None:
        self.settings = settings
        folder(settings.images, "images")
        self.photographs = read_instances(read_json(settings.annotations), settings.annotations)
        _check_images(settings.images, self.photographs)
        device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, device)
        self.eraser = Eraser.load(settings.eraser, device=str(device), dtype=dtype)
        self.depth = DepthEstimator.load(settings.depth, device=str(device), dtype=dtype)
        self.asking = QuestionOptions(
            settings.thresholds, settings.relations, settings.format, settings.published
        )

    def names(self) -> list[str]:
        return [one.name for one in self.photographs]

    def chunk(self) -> int:
        return self.settings.batch

    def recipe(self) -> dict[str, Any]:
        plain, network = to_plain(self.settings), Path(self.settings.depth)
        return {
            "source": "coco",
            "annotations": self.settings.annotations.name,
            "eraser": self.eraser.identity,
            "depth": hash_folder(network) if network.is_dir() else self.settings.depth,
            **{key: plain[key] for key in DECISIVE},
        }

    def prepare(self, indices: Sequence[int]) -> list[Prepared]:
        """Read the images and remove objects."""
        threads = self.settings.workers if self.eraser.kind == "opencv" else 1
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._prepare, (self.photographs[index] for index in indices)))

    def finish(self, prepared: Sequence[Prepared]) -> list[Built]:
        """Estimate the depth of all images of a chunk together, then ask."""
        images = [
            rgb_u8
            for one in prepared
            if one.rgb_u8 is not None
            for rgb_u8 in (one.rgb_u8, *(removal.filled_u8 for removal in one.removals))
        ]
        maps = iter(self.depth.estimate_many(images, batch_size=self.settings.batch))
        return [
            Built(one.photograph.name, (), one.dropped)
            if one.rgb_u8 is None
            else ask(one, next(maps), [next(maps) for _ in one.removals], self.asking)
            for one in prepared
        ]

    def _prepare(self, photograph: Photograph) -> Prepared:
        rng = np.random.default_rng((self.settings.seed, photograph.id))
        nothing = Prepared(photograph, rng, [])
        order = [int(index) for index in rng.permutation(self._candidates(photograph))]
        wanted = rng.random() < self.settings.replace
        if not order:
            why = "no object of the right size" if photograph.objects else "no annotation"
            nothing.dropped.append(f"no target: {why}")
            return nothing
        try:
            image = read_image(self.settings.images / photograph.file)
        except ValueError as error:
            nothing.dropped.append(f"file: {error}")
            return nothing
        if image.size != photograph.size_hw:
            nothing.dropped.append(f"file: {photograph.file} has another size than its annotation says")
            return nothing
        removals = self._removals(image.rgb_u8, photograph, order, rng, nothing.dropped)
        named = self._named(photograph)
        replaced = next((index for index in order if index in named), None) if wanted else None
        if not removals and replaced is None:
            return nothing
        return replace(nothing, rgb_u8=image.rgb_u8, removals=tuple(removals), replaced=replaced)

    def _removals(
        self,
        rgb_u8: np.ndarray,
        photograph: Photograph,
        order: Sequence[int],
        rng: np.random.Generator,
        dropped: list[str],
    ) -> list[Removal]:
        """The first objects in this order that can be removed, at most `targets`."""
        removals: list[Removal] = []
        for index in order:
            if len(removals) == self.settings.targets:
                break
            if not self._has_anchor(photograph, index):
                dropped.append("no relation: nothing near the target has a name of its own")
                continue
            target, seed = photograph.objects[index], int(rng.integers(2**31))
            try:
                found = remove(rgb_u8, index, target, self.settings.thresholds, self.eraser, seed)
                removals.append(found)
            except (Rejected, ValueError) as error:
                dropped.append(str(error) if isinstance(error, Rejected) else f"file: {error}")
        return removals

    def _has_anchor(self, photograph: Photograph, index: int) -> bool:
        """Whether something near the object has a name; saves the work on images with one thing."""
        if self.settings.published:
            return True
        box = photograph.objects[index].box01_xyxy
        others = [other for at, other in enumerate(photograph.objects) if at != index]
        names = unique_names(others, self.settings.thresholds.anchor)
        return any(reaches(box, others[at].box01_xyxy, self.settings.relations.reach) for at in names)

    def _candidates(self, photograph: Photograph) -> list[int]:
        """Objects that may be removed."""
        if self.settings.published:
            return published.kept(photograph.objects)
        low, high = self.settings.thresholds.target
        return [
            index
            for index, one in enumerate(photograph.objects)
            if not one.crowd and low <= one.share <= high and can_be_said(one.category)
        ]

    def _named(self, photograph: Photograph) -> set[int]:
        """Objects that a name picks out."""
        if self.settings.published:
            return set(published.kept(photograph.objects))
        return set(unique_names(photograph.objects, self.settings.thresholds.anchor))


def _check_images(images: Path, photographs: Sequence[Photograph]) -> None:
    """Refuse a folder that has nothing to do with the annotations."""
    if not any((images / one.file).is_file() for one in photographs):
        raise ValueError(f"images: {images} holds none of the annotated images, as {photographs[0].file}")
