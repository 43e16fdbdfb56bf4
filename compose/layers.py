"""Composites and jobs as layers: OpenRaster files, which GIMP and Krita open, and folders of PNG files.

https://www.openraster.org/baseline/file-layout-spec.html
"""

import hashlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from compose.scene import JobResult, JobScene, Patch
from datasets.geometry import tight_slices
from ldm.decode import LoadedImage
from ldm.files import file_sha256, json_bytes, read_json, set_aside, write_all_atomic
from ldm.images import encode_image, encode_png, fitted, resize
from ldm.result import beside, write_result

if TYPE_CHECKING:
    from compose.pipeline import Result


THUMBNAIL = 256  # pixels of the longer side, at most; of the specification


def save_layers(result: "Result", index: int, out: Path, overwrite: bool) -> Path:
    """Write NAME_layers.ora beside the composite `out`: what sample `index` consists of, the lowest first.

    background: as it was read. around: what changed beside the object, such as its shadow. object: its
    visible pixels. front: what is certainly nearer than the object. Pixels of all but the background are
    opaque, or empty and black. Laid over each other they are the composite, byte for byte where the
    background is opaque. overwrite: as in `ldm.result.write_result`
    """
    image, before, report, geometry = result.images[index], result.background, result.report, result.geometry
    layers, embed = geometry.native_layers, geometry.window.embed
    depth_01 = geometry.inputs.background_depth_01
    changed, visible = (image.own_u8 != before.own_u8).any(axis=2), embed(layers.visible)
    if image.alpha_u8 is not None and before.alpha_u8 is not None:
        changed |= image.alpha_u8 != before.alpha_u8
    around, front = changed & ~visible, embed(layers.keep) & ~changed & ~visible
    shown = [("background", before, depth_01), ("around", cut_out(image, around), depth_01)]
    shown.append(("object", cut_out(image, visible), result.fused_depth_01))
    shown.append(("front", cut_out(image, front), depth_01))
    about = {name: report[name] for name in ("box", "depth", "mode", "visible_fraction")}
    return write_open_raster(out, shown, image, {**about, "seed": result.seeds[index]}, overwrite)


def save_job_layers(result: JobResult, out: Path, overwrite: bool) -> Path:
    """Write NAME_layers.ora beside the image `out` of a job: the layers in the order of their depth.

    Of an object what it covers is a layer, and what changed around it another, just above the background. A
    layer shows all that it painted, less what a later layer below it has painted since; so the layers laid
    over each other are the image, byte for byte where the background is opaque.
    """
    pieces: list[tuple[float, int, str, np.ndarray, JobScene]] = []
    for number, (name, patch) in enumerate(zip(result.names, result.patches, strict=True)):
        masks = np.zeros((2, *result.background.size), bool)
        masks[0][patch.part], masks[1][patch.part] = patch.edit & ~patch.cover, patch.cover
        z = next((place.d for place in patch.places.values()), -1.0)
        state = [*result.scene.before, result.scene][number + 1]
        shown = name if patch.places else f"{name}, removed"
        pieces += [(-1.0, number, f"{name}, around", masks[0], state), (z, number, shown, masks[1], state)]
    pieces, background = sorted(pieces, key=lambda piece: piece[:2]), result.scene.before[0]
    layers = [("background", background.image, background.depth_01)]
    for rank, (_, number, name, mask, state) in enumerate(pieces):
        for _, later, _, other, _ in pieces[:rank]:
            mask = mask & ~other if later > number else mask
        if (mask & (result.scene.owner == number + 1)).any():  # something of it is seen
            layers.append((name, cut_out(state.image, mask), state.depth_01))
    about = {"layers_of_job": result.report["layers"]}
    return write_open_raster(out, layers, result.scene.image, about, overwrite)


def cut_out(image: LoadedImage, mask: np.ndarray) -> LoadedImage:
    """An image (h, w), opaque in a mask (h, w), elsewhere empty and black."""
    pixels_u8 = np.where(mask[..., None], image.own_u8, np.uint8(0))
    return replace(image, rgb_u8=pixels_u8, stored_u8=None, alpha_u8=mask * np.uint8(255))


def write_open_raster(
    out: Path,
    layers: Sequence[tuple[str, LoadedImage, np.ndarray]],
    image: LoadedImage,
    about: Mapping[str, Any],
    overwrite: bool,
) -> Path:
    """NAME_layers.ora: every layer with its depth and mask, the whole `image`, and `about` in layers.json.

    layers: names, images (h, w) and depths (h, w), the lowest first; each is cut to what is opaque.
    """
    (h, w), stack = image.size, ""
    entries: list[dict[str, Any]] = []
    files = {"mimetype": b"image/openraster", "stack.xml": b""}
    for number, (name, layer, depth_01) in enumerate(layers):
        stem = f"data/{file_name(name)}"
        stem += f"_{number}" if f"{stem}.png" in files else ""
        opaque = np.ones((h, w), bool) if number == 0 or layer.alpha_u8 is None else layer.alpha_u8 > 0
        part = tight_slices(opaque) if opaque.any() else np.s_[:1, :1]
        y, x = part[0].start or 0, part[1].start or 0
        alpha_u8 = None if layer.alpha_u8 is None else layer.alpha_u8[part]
        cut = replace(layer, rgb_u8=layer.own_u8[part], stored_u8=None, alpha_u8=alpha_u8)
        depth_u16 = np.rint(np.clip(depth_01[part], 0, 1) * 65535).astype(np.uint16)
        files |= {
            f"{stem}.png": encode_image(cut, ".png"), f"{stem}_depth.png": encode_png(depth_u16),
            f"{stem}_mask.png": encode_png(opaque[part] * np.uint8(255))}  # fmt: skip
        name = name if all(entry["name"] != name for entry in entries) else f"{name} ({number})"
        entries.append({"name": name, "file": f"{stem}.png", "x": x, "y": y})
        entries[-1] |= {"depth_file": f"{stem}_depth.png", "mask_file": f"{stem}_mask.png"}
        stack = f'<layer name={quoteattr(name)} src="{stem}.png" x="{x}" y="{y}"/>{stack}'
    stack = f'<?xml version="1.0"?><image version="0.0.3" w="{w}" h="{h}"><stack>{stack}</stack></image>'
    files |= {
        "stack.xml": stack.encode(), "mergedimage.png": encode_image(image, ".png"),
        "Thumbnails/thumbnail.png": encode_png(resize(image.rgb_u8, fitted(image.size, THUMBNAIL))),
        "layers.json": (json.dumps({"size": [w, h], **about, "layers": entries}, indent=2) + "\n").encode(),
    }  # fmt: skip
    path, buffer = beside(out, "_layers.ora"), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs are compressed already
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time: equal input gives equal bytes
    write_result({path: buffer.getvalue()}, overwrite)
    return path


def file_name(name: str) -> str:
    """A layer's name in the name of a file: letters of any language, digits and _."""
    return re.sub(r"\W+", "_", name).strip("_") or "layer"


class LayerFolder:
    """NAME_layers beside an image: the patches of a job as PNG files, and what they are in layers.json.

    resume: patches are written one by one, and taken from there whose layer is the same, and what that layer
    looked at; without it all come at the end, and another result is renamed, or replaced (`overwrite`).
    """

    def __init__(self, out: Path, resume: bool, overwrite: bool) -> None:
        self.folder, self.resume, self.overwrite = out.with_name(f"{out.stem}_layers"), resume, overwrite
        self.entries, self.known = list[dict[str, Any]](), list[dict[str, Any]]()
        self.files, self.book = dict[Path, bytes](), b""
        if resume and (book := self.folder / "layers.json").is_file():
            self.known = read_json(book)["layers"]

    def take(self, digest: str, scene: JobScene) -> list[Patch] | None:
        """The patches of a layer with this hash, made from the same pixels; None where there are none."""
        entries = [entry for entry in self.known if entry["digest"] == digest]
        read = entries[0]["read"] if entries else None
        if not entries or entries[0]["under"] != scene.digest(read and tuple(read)):
            return None
        try:
            return [Patch.load(self.folder, entry) for entry in entries]
        except ValueError as error:
            logging.getLogger(__name__).warning("%s: the layer is made again", error)
            return None

    def put(self, digest: str, under: JobScene, name: str, patches: Sequence[Patch]) -> None:
        """Write the patches of a layer, then the list of all so far."""
        for patch in patches:
            stem = f"{len(self.entries) + 1:02d}_{file_name(name)}"
            files = {self.folder / file: data for file, data in patch.files(stem, under.image).items()}
            hashes = {path.name: hashlib.sha256(data).hexdigest() for path, data in files.items()}
            about = {"name": name, "digest": digest, "under": under.digest(patches[0].read), "files": hashes}
            self.entries.append({**about, **patch.facts})
            self.files |= files
        later = self.known if len(self.known) > len(self.entries) else []
        h, w = under.image.size
        self.book = json_bytes({"size": [w, h], "layers": [*self.entries, *later[len(self.entries) :]]})
        if self.resume:
            self.save()

    def save(self) -> None:
        """Write what was put since; the list comes last, so that a folder without it is no result."""
        book = self.folder / "layers.json"
        earlier = book.read_bytes() if book.is_file() else self.book
        if not (self.resume or self.overwrite or earlier == self.book):
            set_aside([self.folder])
        ours = {digest for entry in [*self.known, *self.entries] for digest in entry["files"].values()}
        there = [path for path in self.files if path.is_file()]
        if not self.overwrite:  # what somebody has changed since
            set_aside(path for path in there if file_sha256(path) not in ours)
        write_all_atomic({**self.files, book: self.book})
        self.files.clear()
