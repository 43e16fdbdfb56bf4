"""What a visitor of the page works on: images, cut-out, place, named things. No network runs here.

Boxes and points are fractions of the image. Legend: H W background, h w object.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import cv2
import numpy as np

from compose.recipe import settings_of_recipe
from compose.serve.jobs import DEPTH, ENDED, Job
from compose.serve.settings import COMPOSE_FIELDS, anywhere, filled
from compose.settings import INPUT_FILES, ComposeSettings
from compose.sources import SIDE, Occlusion, Sources, depth_of, occlusion, shrink
from datasets.geometry import Box01, bbox_of_mask, box_to_01, check_box01, depth_at_contact
from datasets.inputs import PairOptions
from ldm.decode import LoadedImage
from ldm.experts.segment import corrected_mask, mask_at, object_mask
from ldm.files import file_sha256, write_json
from ldm.images import fitted, read_image, read_mask, resize, write_mask
from ldm.settings.config import to_plain
from ldm.temporary import FOLDER, IN_MEMORY, own_folder

# What a recipe says besides files and place, which the page may have no control for.
CARRIED = {*COMPOSE_FIELDS, "invert_target_mask"} - {"box", "box_px", "depth", "instruction", "candidates"}
PLACE, NAME, MASK = "place the object", "name a thing", "paint the target mask"
FIXES = {"add by click": (True, True), "remove by click": (False, True)}  # adds, finds what is alike
FIXES |= {"paint in": (True, False), "rub out": (False, False)}
CLICK = 0.012  # radius of a click, of the longer side; chosen: a fingertip on a phone
LEAST_BOX = 0.06  # side of a box round a click at which little was found; chosen


def stroke_mask(size: tuple[int, int], points: Sequence[Sequence[float]], radius: float) -> np.ndarray:
    """(h, w) bool: a round brush moved over the points (x, y); radius of the longer side."""
    mask, width = np.zeros(size, np.uint8), max(1, round(2 * radius * max(size)))
    line = np.rint(np.array(points, float).reshape(-1, 2) * (size[1] - 1, size[0] - 1)).astype(np.int32)
    cv2.polylines(mask, [line], False, 1, width)
    for x, y in line[[0, -1]]:
        cv2.circle(mask, (int(x), int(y)), width // 2, 1, -1)
    return mask > 0


class Visit:
    """What one visitor has: a folder, files, jobs."""

    def __init__(self) -> None:
        self.own, self.lock = own_folder(FOLDER), RLock()  # events come in several threads
        self.client, self.text, self.answers = "", "", 0  # its address, what its tab says, how many times
        self.jobs: dict[str, Job] = {}  # kind -> the last one
        self.done = Counter[str]()  # surface -> number of the last act on it

    def catch_up(self, log: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Do what was done on the surfaces, see canvas.js, each act once and in its order."""
        for surface, acts in log.items():
            for act in acts:
                if act["number"] > self.done[surface]:
                    self.done[surface] = act["number"]
                    self.act(surface, act)

    def act(self, surface: str, act: Mapping[str, Any]) -> None:
        """An act of the visitor."""

    @property
    def work(self) -> list[str]:
        """What the server does for the visitor: kinds of jobs."""
        return [kind for kind, job in self.jobs.items() if job.state not in ENDED]


class Desk(Visit):
    """The composite that one visitor prepares. ValueError for what the visitor can mend."""

    def __init__(self, config: Path | None, options: PairOptions) -> None:
        """config: of settings below the visitor's. options: the pre-processing of the compositor."""
        super().__init__()
        self.config, self.options = config, options
        self.files: dict[str, Path] = {}  # setting -> its file
        self.seen: dict[str, Path] = {}  # hash -> every file that was given
        self.wanted: dict[str, str] = {}  # setting -> hash of its file in a recipe
        self.background: LoadedImage | None = None
        self.item: LoadedImage | None = None
        self.cut = self.marks = np.zeros((0, 0), np.uint8)  # (h, w) the object; 1 painted in, 2 rubbed out
        self.object_depth_01: np.ndarray | None = None  # (h, w)
        self.note, self.back = "", list[Any]()  # of an earlier result: text, values of the controls
        self.clear()

    def clear(self) -> None:
        """Forget what belongs to one background."""
        self.jobs.pop(DEPTH, None)
        self.files = {name: path for name, path in self.files.items() if name.startswith("object")}
        self.carried: dict[str, Any] = {}  # settings of a recipe
        self.depth_01: np.ndarray | None = None  # (H, W)
        self.target: np.ndarray | None = None  # (H, W) bool
        self.box: Box01 | None = None
        self.depth: tuple[float, ...] | None = None  # None: that of the ground at the foot of the box
        self.forget()
        self.records: list[dict[str, Any]] = []  # the locator's answer, with each place chosen in turn
        self.small: tuple[Sources, np.ndarray] | None = None

    @property
    def work(self) -> list[str]:
        """So is the depth of a background that has none, unless its job has failed."""
        lacks = DEPTH not in self.jobs and self.background is not None and self.depth_01 is None
        return super().work + [DEPTH] * lacks

    def forget(self) -> None:
        self.named: dict[str, Box01] = {}
        self.pending: Box01 | None = None  # has no name yet

    def take(self, name: str, path: Path) -> str:
        """Use a file as this setting of a composite; returns what the visitor should know."""
        note, sizes = "", (self.background, self.item)
        if name == "background":
            self.background, recipe = read_image(path), (self.box, self.depth, self.records, self.carried)
            self.clear()
            if name in self.wanted:  # it comes after a recipe, which stays
                self.box, self.depth, self.records, self.carried = recipe
        elif name == "object":
            self.item, self.marks = (item := read_image(path)), np.zeros(item.size, np.uint8)
            self.files.pop("object_mask", None)
            self.files.pop("object_depth", None)
            self.object_depth_01, plain = None, anywhere(self.config, self.carried)
            try:
                self.cut, way = object_mask(
                    item, plain.sam, plain.cutout, plain.object_box, plain.device, plain.dtype
                )
                note = "" if way == "alpha" else "The outline is estimated: click or paint to correct it"
            except ValueError:
                self.cut, note = np.zeros(item.size, bool), "No outline was found: paint the object"
        elif (like := sizes[name in ("object_mask", "object_depth")]) is None:
            raise ValueError(f"the {name.replace('_', ' ')} comes after its image")
        elif name == "background_depth":
            self.depth_01 = depth_of(path, like.size)
        elif name == "object_depth":
            self.object_depth_01 = depth_of(path, like.size)
        elif name == "object_mask":
            self.cut = read_mask(path, size=like.size)
        else:
            self.target = read_mask(path, size=like.size) ^ self.carried.get("invert_target_mask", False)
        self.files[name], self.small, digest = path, None, file_sha256(path)
        self.seen[digest] = path
        if self.wanted.pop(name, digest) != digest:
            note = f"This is not the {name.replace('_', ' ')} that the image was made from"
        return note

    def correct(self, points: Sequence[Sequence[float]], radius: float, adds: bool, finds: bool) -> None:
        """Add a stroke to the object or take it away. finds: so is what looks like it."""
        assert self.item is not None
        stroke = stroke_mask(self.item.size, points, radius)
        self.marks[stroke] = 1 if adds else 2
        cut = corrected_mask(self.item.rgb_u8, self.cut, self.marks) if finds else self.cut.copy()
        cut[stroke] = adds
        self.take("object_mask", self._written("object_mask", cut))

    def act(self, surface: str, act: Mapping[str, Any]) -> None:
        """A box, a click or a stroke, or another depth of the object's centre; None: that of the ground."""
        if "depth" in act:
            self.depth = None if act["depth"] is None else (act["depth"],)
            return
        tool, fix = act["means"]
        if surface == "object":
            adds, finds = FIXES[fix]
            self.correct(act["points"], CLICK if finds else act["radius"], adds, finds)
        elif tool == MASK and not act["box"]:
            self.paint_target(act["points"], act["radius"])
        else:
            self.draw(tool == NAME, act["box"], act["points"])

    def paint_target(self, points: Sequence[Sequence[float]], radius: float) -> None:
        assert self.background is not None
        stroke = stroke_mask(self.background.size, points, radius)
        target = stroke if self.target is None else self.target | stroke
        self.carried.pop("invert_target_mask", None)
        self.take("target_mask", self._written("target_mask", target))

    def _written(self, name: str, mask: np.ndarray) -> Path:
        if not mask.any():
            raise ValueError(f"nothing is left of the {name.replace('_', ' ')}")
        path = Path(self.own.name) / f"{name}_{len(self.seen)}.png"
        write_mask(path, mask)
        return path

    def box_at(self, x: float, y: float) -> Box01:
        """The box of what stands at a point of the background."""
        assert self.background is not None
        small_u8 = resize(self.background.rgb_u8, fitted(self.background.size, SIDE))
        x0, y0, x1, y1 = box_to_01(bbox_of_mask(mask_at(small_u8, (x, y))), small_u8.shape[:2])
        wide, high = max(0.0, LEAST_BOX - x1 + x0) / 2, max(0.0, LEAST_BOX - y1 + y0) / 2
        return max(0.0, x0 - wide), max(0.0, y0 - high), min(1.0, x1 + wide), min(1.0, y1 + high)

    def draw(self, naming: bool, box: Sequence[float] | None, points: Sequence[Sequence[float]]) -> None:
        """A box by hand, or a click: on a proposed place, or on a thing to be named."""
        if naming:
            self.pending = check_box01(box) if box else self.box_at(*points[0])
        elif box:
            self.box, self.depth = check_box01(box), None if self.record else self.depth
        else:
            (x, y), boxes = points[0], [self.place(index) for index in range(len(self.records))]
            hits = [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x <= x1 and y0 <= y <= y1]
            hits.sort(key=lambda index: boxes[index] == self.box)  # the one in use is the last choice
            if hits:
                self.choose(hits[0])

    def place(self, index: int) -> Box01:
        return tuple(self.records[index]["candidates"][index]["box"])

    def choose(self, index: int) -> None:
        found = self.records[index]["candidates"][index]
        self.box = self.place(index)
        self.depth = (found["depth"],) if found["far"] is None else (found["far"], found["near"])

    @property
    def record(self) -> dict[str, Any] | None:
        """The locator's answer, while its place is used."""
        return next((self.records[i] for i in range(len(self.records)) if self.place(i) == self.box), None)

    def name(self, text: str) -> None:
        """Name the pending box; the locator then knows where the thing is."""
        if self.pending is None or not text.strip():
            raise ValueError("draw a box round the thing, or click on it, and type its name")
        self.named[" ".join(text.lower().split())], self.pending = self.pending, None

    def settings(self, given: Mapping[str, Any], sentence: str = "") -> ComposeSettings:
        """As the command line has it. given: further settings. sentence: where, instead of the box."""
        if self.background is None or self.item is None:
            raise ValueError("give a background and an object first")
        if not sentence and self.box is None and self.target is None:
            raise ValueError("drag a box on the background, or say in a sentence where the object goes")
        values = {**self.carried, **self.files, **given}
        if sentence:
            values |= {"instruction": sentence, "target_mask": None}
            if self.named:
                values["anchors"] = Path(self.own.name) / "anchors.json"
                write_json(values["anchors"], {name: {"box": list(box)} for name, box in self.named.items()})
        else:
            values |= {"box": self.box, "depth": self.depth}
            if self.box and given.get("mode") == "place":
                values.pop("target_mask", None)
        plain = to_plain({name: value for name, value in values.items() if value is not None})
        return filled(ComposeSettings, self.config, plain)

    def preview(self, mode: str) -> Occlusion | None:
        """The object in its place; None where something is missing for that."""
        target = None if mode == "place" else self.target
        placed = (self.box is not None or target is not None) and self.cut.any()
        if self.background is None or self.item is None or self.depth_01 is None or not placed:
            return None
        if self.small is None:
            box01 = None if self.target is None else box_to_01(bbox_of_mask(self.target), self.target.shape)
            maps = self.target, self.depth_01, self.object_depth_01
            full = Sources(self.background, self.item, self.cut.astype(bool), "file", box01, *maps, [])
            self.small = shrink(full, self.depth_01)
        sources, depth_01 = self.small
        sources = sources if target is not None else replace(sources, target=None)
        depth = self.depth or (None if self.box is None else (self.centre(),))
        settings = ComposeSettings(**self.files, box=self.box, depth=depth, mode=mode)  # type: ignore[arg-type]
        return occlusion(settings, sources, depth_01, self.options)

    def estimated(self, background: LoadedImage, depth_01: np.ndarray) -> None:
        """The depth (H, W) of a background, if it is still there and has none."""
        if self.background is background and self.depth_01 is None:
            self.depth_01, self.small = depth_01, None

    def centre(self) -> float:
        """The depth that a slider shows."""
        if self.depth is not None:
            return sum(self.depth) / len(self.depth)
        return 0.5 if self.depth_01 is None or self.box is None else depth_at_contact(self.depth_01, self.box)

    def replay(self, image: Path) -> tuple[dict[str, Any], list[str]]:
        """Take over what an image was made with: all settings, and which inputs the visitor must give."""
        settings, recipe = settings_of_recipe(image)
        plain, missing = to_plain(settings), []
        self.wanted = {name: digest for name, digest in recipe["inputs"].items() if digest is not None}
        self.carried = {name: plain[name] for name in CARRIED & plain.keys() if plain[name] is not None}
        for name in (name for name in INPUT_FILES if name in self.wanted):
            if (path := self.seen.get(self.wanted[name])) is not None:
                self.take(name, path)
            else:
                missing.append(f"{name.replace('_', ' ')} ({Path(plain[name]).name.removeprefix(IN_MEMORY)})")
        self.box, self.depth = settings.box, settings.depth
        if placement := recipe.get("placement"):
            count = range(len(placement["candidates"]))
            self.records = [{**placement, "chosen": index, "satisfied": {}} for index in count]
            self.records[placement["chosen"]] = placement
        return {**plain, "instruction": placement and placement["instruction"]}, missing
