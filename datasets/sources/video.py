"""Videos and turntables: YouTube-VOS, YouTube-VIS, VIPSeg, MOSE, UVO, MVImgNet.

Reference and target are two frames that show the same object. An item is a video (UVO: an object of one).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.sources.image_source import ImagesConfig, Item, motion
from datasets.sources.readers import (
    ObjectView,
    Rules,
    alpha_mask,
    folder,
    id_mask,
    images_in,
    json_entry,
    mask_of_id,
    objects_in,
    read_ids,
    require,
    segment_mask,
    subfolders,
)
from ldm.files import numbered_lines, read_json
from ldm.settings.config import setting


def apart(default: int) -> Any:
    """The setting that says how far apart reference and target are."""
    return setting(default, low=1, help="two frames are at least 1/interval of the video apart")


@dataclass(frozen=True, kw_only=True)
class VideoConfig(ImagesConfig):
    """What all videos have in common."""

    interval: int = apart(10)
    dynamics: int = motion(1)
    rules: Rules = setting(Rules(sides="both"), help="which objects are rejected")

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[ObjectView, ObjectView]:
        return self.two_of(list(self.views(item)), item, rng)

    def two_of(self, frames: list, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        """Two of the frames, at least 1/interval of them apart (published sampling)."""
        if not frames:
            raise Rejected(f"no frame: {item[0]} is empty")
        count, gap = len(frames), len(frames) // self.interval
        start = int(rng.integers(0, count - gap))
        return frames[start], frames[min(start + int(rng.integers(gap, count - start)), count - 1)]


@dataclass(frozen=True, kw_only=True)
class YoutubeConfig(VideoConfig):
    """YouTube-VOS, and YouTube-VIS in its layout: palette images of ids, a list of objects."""

    masks: Path = setting(help="id images, VIDEO/FRAME.png")
    meta: Path = setting(help="meta.json: the objects of every video and their frames")

    def read(self) -> list[Item]:
        folder(self.masks, "masks")
        items = []
        for video, record in json_entry(read_json(self.meta), "videos", self.meta).items():
            listed = {int(label): entry["frames"] for label, entry in record["objects"].items()}
            objects = {label: frames for label, frames in listed.items() if frames}
            if objects:
                items.append((video, objects))
        return require(sorted(items), f"videos with objects in {self.meta}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        video, objects = item
        for label, frames in objects.items():
            yield from (self._view(video, frame, label) for frame in frames)

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[ObjectView, ObjectView]:
        video, objects = item
        label = sorted(objects)[int(rng.integers(len(objects)))]
        return self.two_of([self._view(video, frame, label) for frame in sorted(objects[label])], item, rng)

    def _view(self, video: str, frame: str, label: int) -> ObjectView:
        mask = partial(id_mask, self.masks / video / f"{frame}.png", label)
        return ObjectView(self.images / video / f"{frame}.jpg", mask, self.tree)


@dataclass(frozen=True, kw_only=True)
class VipSegConfig(VideoConfig):
    """VIPSeg: id images of everything in a frame. Any id that two frames share is an object."""

    masks: Path = setting(help="id images, VIDEO/FRAME.png")
    interval: int = apart(100)
    rules: Rules = setting(Rules(one_piece=True), help="which objects are rejected")

    def read(self) -> list[Item]:
        videos = subfolders(folder(self.masks, "masks"))
        return require([(video.name, video) for video in videos], f"videos in {self.masks}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        for mask in images_in(item[1], (".png",)):
            yield ObjectView(self._image(mask), partial(id_mask, mask, None), self.tree)

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[ObjectView, ObjectView]:
        paths = self.two_of(images_in(item[1], (".png",)), item, rng)
        ids = [read_ids(path) for path in paths]
        shared = sorted(objects_in(ids[0]) & objects_in(ids[1]))
        if not shared:
            raise Rejected(f"no common object: {paths[0]} and {paths[1].name}")
        label = shared[int(rng.integers(len(shared)))]
        first, second = (
            ObjectView(self._image(path), partial(mask_of_id, frame_ids, label, path), self.tree)
            for path, frame_ids in zip(paths, ids, strict=True)
        )
        return first, second

    def _image(self, mask: Path) -> Path:
        return self.images / mask.parent.name / f"{mask.stem}.jpg"


@dataclass(frozen=True, kw_only=True)
class MoseConfig(VipSegConfig):
    """MOSE: the same layout with palette images; objects vanish and come back."""

    interval: int = apart(10)
    dynamics: int = motion(2)


@dataclass(frozen=True, kw_only=True)
class UvoConfig(VideoConfig):
    """UVO: one JSON file of run lengths per frame."""

    video_json: Path = setting(help="annotations with one segmentation per frame")
    image_json: Path | None = setting(
        None, help="frames by video (python -m datasets.uvo_process); not set: those of video_json"
    )

    def read(self) -> list[Item]:
        document, path = read_json(self.video_json), self.video_json
        frames = frames_by_video(document, path)
        sizes = {str(entry["id"]): (entry["height"], entry["width"]) for entry in document["videos"]}
        if self.image_json is not None:
            frames = read_json(self.image_json)
        objects = defaultdict(list)
        for entry in json_entry(document, "annotations", path):
            video = str(entry["video_id"])
            if video not in frames:
                raise ValueError(f"{self.image_json or path} lists no frames of video {video}")
            pairs = zip(frames[video], entry["segmentations"], strict=False)
            objects[video].append((entry["id"], [pair for pair in pairs if pair[1]]))
        items = [
            (f"{video}/{label}", sizes[video], shown)
            for video in sorted(objects)
            for label, shown in sorted(objects[video], key=lambda entry: entry[0])
            if shown
        ]
        return require(items, f"annotated objects in {path}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        _, size, shown = item
        for frame, segmentation in shown:
            image = self.images / frame
            yield ObjectView(image, partial(segment_mask, segmentation, size, str(image)), self.tree)


@dataclass(frozen=True, kw_only=True)
class UvoValConfig(UvoConfig):
    """The validation part, whose videos are annotated densely."""

    interval: int = apart(5)


def frames_by_video(document: object, path: Path) -> dict[str, list[str]]:
    """The frames of every video of an annotation file of UVO."""
    return {str(entry["id"]): entry["file_names"] for entry in json_entry(document, "videos", path)}


@dataclass(frozen=True, kw_only=True)
class MvImgNetConfig(VideoConfig):
    """MVImgNet: views NNN.jpg round an object, with cut-outs NNN_*.png beside them."""

    listing: Path = setting(help="list of folders MVDir/CLASS/OBJECT/images")
    interval: int = apart(8)
    dynamics: int = motion(2)

    def read(self) -> list[Item]:
        if not self.listing.is_file():
            raise ValueError(f"listing: there is no file {self.listing}")
        names = [line.strip().removeprefix("MVDir/") for _, line in numbered_lines(self.listing)]
        return require(sorted((name,) for name in names), str(self.listing))

    def views(self, item: Item) -> Iterator[ObjectView]:
        for cutout in images_in(folder(self.images / item[0], "listing"), (".png",)):
            image = cutout.with_name(f"{cutout.stem.partition('_')[0]}.jpg")
            yield ObjectView(image, partial(alpha_mask, cutout), self.tree)
