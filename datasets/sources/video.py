"""Videos and turntables: YouTube-VOS, YouTube-VIS, VIPSeg, MOSE, UVO, MVImgNet.

Reference and target are two frames that show the same object. An item is a video, or an object of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.sources import coco, readers
from datasets.sources.image_source import ImagesConfig, ImageSource, Item, motion, rejection
from ldm.files import numbered_lines, read_json, same_file
from ldm.settings.config import setting

# Ids of gray masks of VIPSeg: a class up to 124 of stuff, otherwise class * 100 + object (its README).
VIPSEG_STUFF, VIPSEG_LARGEST = 124, 12499
COARSE = 4  # ids are looked for on every fourth pixel; usable objects are far larger


def frame_gap(default: int) -> Any:
    return setting(default, low=1, help="two frames are at least 1/interval of the video apart")


@dataclass(frozen=True, kw_only=True)
class VideoConfig(ImagesConfig):
    interval: int = frame_gap(10)
    dynamics: int = motion(1)
    rules: readers.Rules = rejection(readers.Rules(sides="both"))

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        yield self.two_of(list(self.views(item)), item, rng)

    def two_of(self, frames: list, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        """Two of the frames, at least 1/interval of them apart (published sampling)."""
        if not frames:
            raise Rejected(f"no frame: {item[0]} is empty")
        count, gap = len(frames), len(frames) // self.interval
        start = int(rng.integers(0, count - gap))
        return frames[start], frames[min(start + int(rng.integers(gap, count - start)), count - 1)]


@dataclass(frozen=True, kw_only=True)
class YoutubeConfig(VideoConfig):
    """YouTube-VOS with palette images of ids and a list of objects; YouTube-VIS so, or with run lengths."""

    masks: Path | None = setting(None, help="id images, VIDEO/FRAME.png; not for instances.json")
    meta: Path = setting(help="meta.json: the objects of every video and their frames; or instances.json")

    def open(self, index: Path | None = None) -> ImageSource:
        """The source of meta.json; instances.json has the layout of UVO."""
        if isinstance(coco.json_entry(read_json(self.meta), "videos", self.meta), dict):
            return super().open(index)
        shared = {field.name: getattr(self, field.name) for field in fields(VideoConfig)}
        return UvoConfig(**shared, video_json=self.meta).open(index)

    def read(self) -> list[Item]:
        if self.masks is None:
            raise ValueError(f"masks: {self.meta} needs the folder of id images")
        readers.folder(self.masks, "masks")

        def with_objects(video: dict[str, Any]) -> Item:
            listed = {int(label): entry["frames"] for label, entry in video["record"]["objects"].items()}
            return video["id"], {label: frames for label, frames in listed.items() if frames}

        records = coco.json_entry(read_json(self.meta), "videos", self.meta, dict).items()
        videos = [{"id": video, "record": record} for video, record in records]
        items = [item for item in coco.usable(videos, with_objects, self.meta, "videos") if item[1]]
        return readers.require(sorted(items), f"videos with objects in {self.meta}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        video, objects = item
        for label, frames in objects.items():
            yield from (self._view(video, frame, label) for frame in frames)

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        video, objects = item
        for label in rng.permutation(sorted(objects)).tolist():
            frames = [self._view(video, frame, label) for frame in sorted(objects[label])]
            yield self.two_of(frames, item, rng)

    def _view(self, video: str, frame: str, label: int) -> readers.ObjectView:
        assert self.masks is not None, "checked by read"
        mask = partial(readers.id_mask, self.masks / video / f"{frame}.png", label)
        return readers.ObjectView(self.images / video / f"{frame}.jpg", mask, self.tree)


@dataclass(frozen=True, kw_only=True)
class VipSegConfig(VideoConfig):
    """VIPSeg: id images of everything in a frame. Any id that two frames share is an object (published)."""

    masks: Path = setting(help="id images, VIDEO/FRAME.png")
    things_only: bool = setting(False, help="leave out sky, road and other stuff; gray masks only")
    void: int | None = setting(None, help="id that is no object")
    interval: int = frame_gap(100)
    rules: readers.Rules = rejection(readers.Rules(one_piece=True))

    def read(self) -> list[Item]:
        videos = readers.subfolders(readers.folder(self.masks, "masks"))
        return readers.require([(video.name, video) for video in videos], f"videos in {self.masks}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        for path in readers.images_in(item[1], (".png",)):
            yield readers.ObjectView(self._image(path), partial(self._everything, path), self.tree)

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        paths = self.two_of(readers.images_in(item[1], (".png",)), item, rng)
        ids = {path: readers.read_ids(path) for path in dict.fromkeys(paths)}  # both may be the same frame
        seen = {path: np.unique(every[::COARSE, ::COARSE]) for path, every in ids.items()}
        objects = (set(labels[self._objects(labels, path)].tolist()) for path, labels in seen.items())
        if not (shared := sorted(set.intersection(*objects))):
            raise Rejected(f"no common object: {paths[0]} and {paths[1].name}")
        for label in rng.permutation(shared).tolist():
            masks = {path: partial(readers.id_mask, path, label, every) for path, every in ids.items()}
            views = {p: readers.ObjectView(self._image(p), mask, self.tree) for p, mask in masks.items()}
            yield views[paths[0]], views[paths[1]]

    def _objects(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Bool, which of the ids (any shape) of a mask are those of objects."""
        if self.things_only and ids.max() > VIPSEG_LARGEST:
            raise ValueError(f"things_only: {path} holds colours; set masks to the folder of gray masks")
        objects = ids > (VIPSEG_STUFF if self.things_only else 0)
        return objects if self.void is None else objects & (ids != self.void)

    def _everything(self, path: Path) -> np.ndarray:
        """(h, w) bool, all objects of a frame."""
        objects = self._objects(readers.read_ids(path), path)
        return readers.require_mask(objects, f"object absent: no id in {path}")

    def _image(self, mask: Path) -> Path:
        return self.images / mask.parent.name / f"{mask.stem}.jpg"


@dataclass(frozen=True, kw_only=True)
class MoseConfig(VipSegConfig):
    """MOSE: the same layout with palette images; objects vanish and come back."""

    void: int | None = setting(255, help="id that is no object: in palette images the outline; null: none")
    interval: int = frame_gap(10)
    dynamics: int = motion(2)


@dataclass(frozen=True, kw_only=True)
class UvoConfig(VideoConfig):
    """UVO, and YouTube-VIS as published: a JSON file with the segmentations of every object by frame."""

    video_json: Path = setting(help="annotations with one segmentation per frame")
    image_json: Path | None = setting(
        None, help="frames by video (python -m datasets.uvo_process); not set: those of video_json"
    )

    def read(self) -> list[Item]:
        document, path = read_json(self.video_json), self.video_json
        videos = coco.records_by_id(document, "videos", path)
        frames = None if self.image_json is None else read_json(self.image_json)

        def shown(entry: dict[str, Any]) -> Item:
            video = coco.lookup(videos, entry["video_id"], "video")
            names = video["file_names"]
            if frames is not None:  # of which there may be fewer
                names = coco.lookup(frames, entry["video_id"], "list of frames for video")
            pairs = zip(names, entry["segmentations"], strict=frames is None)
            segments = [pair for pair in pairs if pair[1] and not coco.is_set(entry, "iscrowd")]
            return f"{entry['video_id']}/{entry['id']}", (video["height"], video["width"]), segments

        annotations = list(coco.records_by_id(document, "annotations", path).values())
        annotations.sort(key=lambda entry: (str(entry.get("video_id")), coco.id_order(entry["id"])))
        items = coco.usable(annotations, shown, path, "annotations")
        return readers.require([item for item in items if item[2]], f"annotated objects in {path}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        _, size, shown = item
        for frame, segmentation in shown:
            image = self.images / coco.posix_name(frame)
            mask = partial(coco.segment_mask, segmentation, size, str(image))
            yield readers.ObjectView(image, mask, self.tree)


@dataclass(frozen=True, kw_only=True)
class UvoValConfig(UvoConfig):
    interval: int = frame_gap(5)


@dataclass(frozen=True, kw_only=True)
class MvImgNetConfig(VideoConfig):
    """MVImgNet: views NNN.jpg round an object, with cut-outs NNN_*.png beside them."""

    listing: Path = setting(help="list of folders MVDir/CLASS/OBJECT/images")
    interval: int = frame_gap(8)
    dynamics: int = motion(2)

    def read(self) -> list[Item]:
        if not same_file(self.listing).is_file():
            raise ValueError(f"listing: there is no file {self.listing}")
        names = (coco.posix_name(line.strip().strip('"')) for _, line in numbered_lines(self.listing))
        return readers.require(sorted({(name.removeprefix("MVDir/"),) for name in names}), str(self.listing))

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        for cutout in readers.images_in(readers.folder(self.images / item[0], "listing"), (".png",)):
            image = cutout.with_name(f"{cutout.stem.partition('_')[0]}.jpg")
            yield readers.ObjectView(image, partial(readers.alpha_mask, cutout), self.tree)
