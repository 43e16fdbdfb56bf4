"""Videos: YouTube-VOS, YouTube-VIS, VIPSeg, MOSE, UVO.

Reference and target are two frames that show the same object. An item is a video (UVO: an object of one).
Layouts, addresses and licences: docs/datasets.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.base import Rejected
from datasets.inputs import Inputs
from datasets.sources.annotations import (
    id_mask,
    mask_of_id,
    objects_in,
    read_ids,
    section,
    segment_mask,
)
from datasets.sources.readers import (
    Rules,
    View,
    depth_tree,
    folder,
    images_in,
    make_inputs,
    require,
    subfolders,
    two_frames,
)
from ldm.files import read_json
from ldm.settings.config import check_settings, setting


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """What all videos have in common: frames VIDEO/FRAME.jpg in one folder, depth maps in another."""

    images: Path = setting(was=("pictures",), help="frames, VIDEO/FRAME.jpg")
    depth: Path = setting(help="their depth maps, VIDEO/FRAME.png")
    interval: int = setting(10, low=1, help="two frames are at least 1/interval of the video apart")
    dynamics: int = setting(1, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(sides="both"), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class YoutubeConfig(VideoConfig):
    """YouTube-VOS, and YouTube-VIS in the same layout."""

    masks: Path = setting(help="id images, VIDEO/FRAME.png")
    meta: Path = setting(help="meta.json: the objects of every video and their frames")


class Youtube:
    """Videos whose objects and frames are listed in meta.json; masks are palette images of ids."""

    def __init__(self, config: YoutubeConfig) -> None:
        self.rules, self.dynamics, self.interval = config.rules, config.dynamics, config.interval
        self.tree = depth_tree(config.images, config.depth)
        self.masks = folder(config.masks, "masks")
        videos = section(read_json(config.meta), "videos", config.meta)
        listed = {
            video: {int(label): one["frames"] for label, one in record["objects"].items() if one["frames"]}
            for video, record in videos.items()
        }
        self.items = require(
            sorted((video, objects) for video, objects in listed.items() if objects),
            f"videos with objects in {config.meta}",
        )

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index][0]

    def view(self, video: str, frame: str, label: int) -> View:
        mask = partial(id_mask, self.masks / video / f"{frame}.png", label)
        return View(self.tree.images / video / f"{frame}.jpg", mask, self.tree)

    def views(self, index: int) -> Iterator[View]:
        video, objects = self.items[index]
        for label, frames in objects.items():
            yield from (self.view(video, frame, label) for frame in frames)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        video, objects = self.items[index]
        label = sorted(objects)[int(rng.integers(len(objects)))]
        frames = sorted(objects[label])
        first, second = two_frames(len(frames), self.interval, rng)
        views = self.view(video, frames[first], label), self.view(video, frames[second], label)
        return make_inputs(*views, self.rules)


@dataclass(frozen=True, kw_only=True)
class VipSegConfig(VideoConfig):
    """VIPSeg: id images of everything in a frame, R + 256 G + 65536 B."""

    masks: Path = setting(help="id images, VIDEO/FRAME.png (panomasks or panomasksRGB)")
    interval: int = setting(100, low=1, help="two frames are at least 1/interval of the video apart")
    rules: Rules = setting(Rules(one_piece=True), help="which objects are refused")


@dataclass(frozen=True, kw_only=True)
class MoseConfig(VipSegConfig):
    """MOSE: palette images of ids; objects vanish and come back."""

    masks: Path = setting(help="palette images, VIDEO/FRAME.png")
    interval: int = setting(10, low=1, help="two frames are at least 1/interval of the video apart")
    dynamics: int = setting(2, low=0, high=2, help="0: still, 1: video, 2: new view")


class IdVideos:
    """Videos without a list of objects: any id that two frames share, VIPSeg and MOSE."""

    def __init__(self, config: VipSegConfig) -> None:
        self.rules, self.dynamics, self.interval = config.rules, config.dynamics, config.interval
        self.tree = depth_tree(config.images, config.depth)
        self.masks = folder(config.masks, "masks")
        self.items = require(subfolders(config.masks), f"videos in {config.masks}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].name

    def frames(self, index: int) -> list[Path]:
        """The id images of a video in order."""
        return images_in(self.items[index], (".png",))

    def image(self, mask: Path) -> Path:
        return self.tree.images / mask.parent.name / f"{mask.stem}.jpg"

    def views(self, index: int) -> Iterator[View]:
        for mask in self.frames(index):
            yield View(self.image(mask), partial(_any_id, mask), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        frames = self.frames(index)
        if not frames:
            raise Rejected(f"no frame: {self.items[index]} is empty")
        paths = [frames[one] for one in two_frames(len(frames), self.interval, rng)]
        ids = [read_ids(path) for path in paths]
        shared = sorted(objects_in(ids[0]) & objects_in(ids[1]))
        if not shared:
            raise Rejected(f"no common object: {paths[0]} and {paths[1].name}")
        label = shared[int(rng.integers(len(shared)))]
        first, second = (
            View(self.image(path), partial(mask_of_id, one, label, path), self.tree)
            for path, one in zip(paths, ids, strict=True)
        )
        return make_inputs(first, second, self.rules)


def _any_id(path: Path) -> np.ndarray:
    """(h, w) bool where there is an object; Rejected in an empty frame."""
    mask = read_ids(path) > 0
    if not mask.any():
        raise Rejected(f"object absent: no id in {path}")
    return mask


@dataclass(frozen=True, kw_only=True)
class UvoConfig(VideoConfig):
    """UVO: one JSON file of run lengths per frame."""

    video_json: Path = setting(help="annotations with one segmentation per frame")
    image_json: Path | None = setting(
        None, help="frames by video (python -m datasets.uvo_process); not set: those of video_json"
    )


@dataclass(frozen=True, kw_only=True)
class UvoValConfig(UvoConfig):
    """The validation part, whose videos are annotated densely."""

    interval: int = setting(5, low=1, help="two frames are at least 1/interval of the video apart")


class Uvo:
    """Objects of UVO, each with the frames in which it is annotated."""

    def __init__(self, config: UvoConfig) -> None:
        self.rules, self.dynamics, self.interval = config.rules, config.dynamics, config.interval
        self.tree = depth_tree(config.images, config.depth)
        document, path = read_json(config.video_json), config.video_json
        frames = frames_by_video(document, path)
        self.sizes = {str(one["id"]): (one["height"], one["width"]) for one in document["videos"]}
        if config.image_json is not None:
            frames = read_json(config.image_json)
        objects = defaultdict(list)
        for one in section(document, "annotations", path):
            video = str(one["video_id"])
            if video not in frames:
                raise ValueError(f"{config.image_json or path} lists no frames of video {video}")
            objects[video].append((one["id"], list(zip(frames[video], one["segmentations"], strict=False))))
        self.items = [
            (video, label, shown)
            for video in sorted(objects)
            for label, pairs in sorted(objects[video], key=lambda item: item[0])
            if (shown := [pair for pair in pairs if pair[1]])
        ]
        require(self.items, f"annotated objects in {path}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        video, label, _ = self.items[index]
        return f"{video}/{label}"

    def views(self, index: int) -> Iterator[View]:
        video, _, shown = self.items[index]
        for frame, segmentation in shown:
            image = self.tree.images / frame
            mask = partial(segment_mask, segmentation, self.sizes[video], str(image))
            yield View(image, mask, self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        views = list(self.views(index))
        first, second = two_frames(len(views), self.interval, rng)
        return make_inputs(views[first], views[second], self.rules)


def frames_by_video(document: object, path: Path) -> dict[str, list[str]]:
    """The frames of every video of an annotation file."""
    return {str(one["id"]): one["file_names"] for one in section(document, "videos", path)}
