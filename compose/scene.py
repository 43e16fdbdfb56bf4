"""An image under work: its depth, its named objects, and the patches that layers lay over it.

Legend: H W pixels of the image, h w pixels of a patch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compose.job import LayeredJob
from compose.settings import ComposeSettings
from datasets.fusion import MARGIN, occluders
from datasets.geometry import Box, Box01, bbox_of_mask
from datasets.relations import Place
from ldm.decode import LoadedImage, opened
from ldm.files import file_sha256
from ldm.images import encode_image, encode_png
from ldm.result import save_result

DEPTH_UNITS = 65535  # of a 16-bit depth map


@dataclass(frozen=True, eq=False)
class Thing:
    """A named object that a layer put there."""

    mask: np.ndarray  # (H, W) bool, its visible pixels
    place: Place
    patch: int  # which one put it there, from 1
    settings: ComposeSettings | None  # with its own image; None: only what the scene shows of it


@dataclass(frozen=True, eq=False)
class Patch:
    """What a layer changed, and what it knows of it. box_xyxy: where h w lie."""

    box_xyxy: Box
    own_u8: np.ndarray  # (h, w, 3), in the colours of the background's file
    alpha_u8: np.ndarray | None  # (h, w), where the background has transparency
    edit: np.ndarray  # (h, w) bool, what was allowed to change
    cover: np.ndarray  # (h, w) bool, where something else is seen now than before
    depth_u16: np.ndarray  # (h, w), 65535 = nearest
    places: dict[str, Place]  # the object that is new
    gone: list[str]  # names of objects that are no longer there
    report: dict[str, Any]
    read: Box | None = None  # what of the scene the layer looked at; None: at all of it, and at every name

    @classmethod
    def of(
        cls, after: LoadedImage, depth_01: np.ndarray, edit: np.ndarray, cover: np.ndarray, **more: Any
    ) -> "Patch":
        """What a layer made of a scene: image and depth after it. edit, cover: (H, W) bool."""
        box = bbox_of_mask(edit) if edit.any() else (0, 0, 1, 1)
        part = np.s_[box[1] : box[3], box[0] : box[2]]
        depth_u16 = np.rint(np.clip(depth_01[part], 0, 1) * DEPTH_UNITS).astype(np.uint16)
        alpha_u8 = None if after.alpha_u8 is None else after.alpha_u8[part]
        return cls(box, after.own_u8[part], alpha_u8, edit[part], cover[part] & edit[part], depth_u16, **more)

    @property
    def part(self) -> tuple[slice, slice]:
        x0, y0, x1, y1 = self.box_xyxy
        return np.s_[y0:y1, x0:x1]

    def files(self, stem: str, like: LoadedImage) -> dict[str, bytes]:
        """PNG files: STEM.png, opaque where the layer may have changed something, depth, mask, and alpha."""
        shown = replace(like, rgb_u8=self.own_u8 * self.edit[..., None], stored_u8=None)
        images = {
            f"{stem}.png": encode_image(replace(shown, alpha_u8=self.edit * np.uint8(255)), ".png"),
            f"{stem}_depth.png": encode_png(self.depth_u16),
            f"{stem}_mask.png": encode_png(self.cover * np.uint8(255)),
        }
        return images if self.alpha_u8 is None else {**images, f"{stem}_alpha.png": encode_png(self.alpha_u8)}

    @classmethod
    def load(cls, folder: Path, entry: Mapping[str, Any]) -> "Patch":
        """The patch that an entry of layers.json describes; ValueError where a file was changed since."""
        pixels = []
        for name, sha256 in entry["files"].items():
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
                raise ValueError(f"{folder / name} is not as it was written")
            with opened(folder / name) as image:
                pixels.append(np.asarray(image))
        rgba_u8, depth_u16, mask_u8, *alpha_u8 = pixels
        more = {name: entry[name] for name in ("gone", "report")}
        more["read"] = None if entry["read"] is None else tuple(entry["read"])
        places = entry["places"].items()
        more["places"] = {name: Place(tuple(box), *depths) for name, (box, *depths) in places}
        alpha = alpha_u8[0] if alpha_u8 else None
        edit, depth_u16 = rgba_u8[..., 3] > 0, depth_u16.astype(np.uint16)
        return cls(entry["box_px"], rgba_u8[..., :3], alpha, edit, mask_u8 > 0, depth_u16, **more)

    @property
    def facts(self) -> dict[str, Any]:
        """What `load` needs beside the files, as JSON."""
        places = {name: [at.box01_xyxy, at.d, at.far, at.near] for name, at in self.places.items()}
        plain = {"box_px": self.box_xyxy, "places": places, "gone": self.gone, "report": self.report}
        return {**plain, "read": self.read}


@dataclass(frozen=True, eq=False)
class JobScene:
    """A background and what layers have made of it so far."""

    image: LoadedImage  # (H, W)
    depth_01: np.ndarray  # (H, W), 1 = nearest
    owner: np.ndarray  # (H, W) int16, the last patch that changed each pixel, 0 none
    things: Mapping[str, Thing] = field(default_factory=dict)
    anchors: Mapping[str, Place] = field(default_factory=dict)  # of objects that the background shows
    before: "tuple[JobScene, ...]" = ()  # the scene under each patch
    cleared: tuple[tuple[int, Box01], ...] = ()  # patches that removed what the background showed, and where
    moved_from: Place | None = None  # of an object that is moved now: it keeps its size

    @classmethod
    def of(cls, image: LoadedImage, depth_01: np.ndarray, anchors: Mapping[str, Place]) -> "JobScene":
        return cls(image, depth_01, np.zeros(image.size, np.int16), anchors=anchors)

    @property
    def places(self) -> dict[str, Place]:
        return {**self.anchors, **{name: thing.place for name, thing in self.things.items()}}

    def digest(self, box: Box | None = None) -> str:
        """Hash of what a layer sees that looks at a box, or at all and every name."""
        x0, y0, x1, y1 = box or (0, 0, *self.image.size[::-1])
        part = np.s_[y0:y1, x0:x1]
        seen = [thing for thing in self.things.values() if thing.mask[part].any()]
        named = None if box else (self.places, [*self.things], self.cleared)
        digest = hashlib.sha256(repr((box, named, [thing.place.d for thing in seen])).encode())
        alpha_u8 = self.image.own_u8[..., :0] if self.image.alpha_u8 is None else self.image.alpha_u8
        for plane in (self.image.own_u8, alpha_u8, self.depth_01, *(thing.mask for thing in seen)):
            digest.update(np.ascontiguousarray(plane[part]).tobytes())
        return digest.hexdigest()

    def ordered_for(self, far: float, near: float) -> np.ndarray:
        """The depth (H, W) that an object from far to near meets: placed objects hide it or are hidden whole.

        So of two objects whose depths overlap the one with the nearer middle is in front, in either order.
        """
        depth_01 = self.depth_01.copy()
        for thing in self.things.values():
            seen, in_front = depth_01[thing.mask], thing.place.d > (far + near) / 2
            depth_01[thing.mask] = np.maximum(seen, near + 2 * MARGIN) if in_front else np.minimum(seen, near)
        return depth_01

    def nearer(self, d: float, near: float) -> np.ndarray:
        """(H, W) bool: what is in front of an object with this middle and nearest depth."""
        return occluders(self.ordered_for(2 * d - near, near), near)

    def with_patch(self, patch: Patch, source: ComposeSettings | None = None) -> "JobScene":
        """With one more patch on top. source: with the own image of an object that is new."""
        part, edit, layer = patch.part, patch.edit, len(self.before) + 1
        own_u8, alpha_u8 = self.image.own_u8.copy(), self.image.alpha_u8
        own_u8[part][edit] = patch.own_u8[edit]
        if alpha_u8 is not None and patch.alpha_u8 is not None:
            alpha_u8 = alpha_u8.copy()
            alpha_u8[part][edit] = patch.alpha_u8[edit]
        depth_01, owner = self.depth_01.copy(), self.owner.copy()
        new_01 = patch.depth_u16.astype(np.float32) / DEPTH_UNITS
        moved = edit & (np.abs(new_01 - depth_01[part]) >= 1 / DEPTH_UNITS)  # the rest only lost digits
        depth_01[part][moved] = new_01[moved]
        owner[part][edit] = layer
        covered = np.zeros(self.image.size, bool)
        covered[part] = patch.cover
        kept = [(name, thing) for name, thing in self.things.items() if name not in patch.gone]
        things = {name: replace(thing, mask=thing.mask & ~covered) for name, thing in kept}
        for name, place in patch.places.items():
            things[name] = Thing(covered, place, layer, source)
        anchors = {name: at for name, at in self.anchors.items() if name not in patch.gone}
        image = self.image.with_own(own_u8, alpha_u8, part)
        new = ((layer, patch.report["box"]),) if set(patch.gone) - self.things.keys() else ()
        before, cleared = (*self.before, self), (*self.cleared, *new)
        return JobScene(image, depth_01, owner, things, anchors, before, cleared)


@dataclass(frozen=True, eq=False)
class JobResult:
    job: LayeredJob
    scene: JobScene  # after the last layer; its `before` has the states under each patch
    patches: list[Patch]
    names: list[str]  # of the layer of each patch
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured

    @property
    def background(self) -> LoadedImage:
        """(H, W), as it was read."""
        return self.scene.before[0].image

    @property
    def image_u8(self) -> np.ndarray:
        """(H, W, 3), in the colours of the background."""
        return self.scene.image.own_u8

    @property
    def edit_mask(self) -> np.ndarray:
        """(H, W) bool: what some layer was allowed to change."""
        return self.scene.owner > 0

    @property
    def summary(self) -> str:
        changed = self.report["drift"]["changed_outside"]
        return f"{len(self.job.layers)} layers, {changed} pixels changed outside what they may change"

    def save(self, path: Path, overwrite: bool = False) -> None:
        """The image with its recipe, the JSON report beside it; an earlier result is kept or replaced."""
        save_result(path, self.scene.image, self.recipe, self.report, overwrite)
