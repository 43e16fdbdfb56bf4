"""A rendered room as files for jobs: the scene with and without one solid, depth and masks are exact."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.relations import Place
from datasets.scenes import SceneOptions, eval_seed, render, sample_scene
from ldm.images import write_depth, write_mask, write_png

SEED = eval_seed(5)  # a torus, and a capsule that is removed; both in full view
CAPSULE, TORUS = "yellow capsule", "dotted black torus"


@dataclass(frozen=True)
class Room:
    """Files in `folder`; arrays (h, w) of the scene with the capsule and without it."""

    folder: Path
    with_u8: np.ndarray
    without_u8: np.ndarray
    depth_01: np.ndarray
    without_depth_01: np.ndarray
    masks: dict[str, np.ndarray]
    places: dict[str, Place]
    model: Path
    depth_model: Path

    def job(self, *layers: dict[str, Any], empty: bool = False, **more: Any) -> dict[str, Any]:
        """A job on the scene; `empty`: on that without the capsule."""
        start = "without" if empty else "with"
        files = {"background": f"{start}.png", "background_depth": f"{start}_depth.png"}
        paths = {key: str(self.folder / name) for key, name in files.items()}
        networks = {"model": str(self.model), "depth_model": str(self.depth_model), "eraser": "opencv"}
        return {**paths, **networks, "layers": list(layers), **more}

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def capsule(self, **more: Any) -> dict[str, Any]:
        """The layer that puts the capsule where it was."""
        at = self.places[CAPSULE]
        layer = {"object": self.file("object.png"), "name": "capsule", "box": list(at.box01_xyxy)}
        return {**layer, "depth": [at.far, at.near], **more}


def render_room(folder: Path, model: Path, depth_model: Path) -> Room:
    options = SceneOptions(size=(96, 96), reference_size=(64, 64))
    batch = render([sample_scene(SEED, options)], options)
    facts = batch.facts[0]
    images = {"with": batch.image_01, "without": batch.without_01}
    pixels = {n: (255 * each[0]).round().byte().permute(1, 2, 0).numpy() for n, each in images.items()}
    depths = {"with": batch.depth_01[0].numpy(), "without": batch.without_depth_01[0].numpy()}
    for name in pixels:
        write_png(folder / f"{name}.png", pixels[name])
        write_depth(folder / f"{name}_depth.png", depths[name])
    reference_u8 = (255 * batch.reference_01[0]).round().byte().permute(1, 2, 0).numpy()
    write_png(folder / "object.png", reference_u8, alpha_u8=batch.reference_mask[0].numpy() * np.uint8(255))
    masks = {name: (batch.instances[0] == k + 1).numpy() for k, name in enumerate(facts.names)}
    for name, mask in masks.items():
        write_mask(folder / f"{name.split()[-1]}_mask.png", mask)
    rows = zip(facts.names, facts.boxes01, facts.depths, strict=True)
    places = {name: Place(box, *depth) for name, box, depth in rows}
    entries = {n: {"box": list(p.box01_xyxy), "depth": [p.far, p.near]} for n, p in places.items()}
    (folder / "anchors.json").write_text(json.dumps(entries))
    assert asdict(facts)["removed"] == facts.names.index(CAPSULE)
    return Room(
        folder, pixels["with"], pixels["without"], depths["with"], depths["without"], masks, places, model,
        depth_model,
    )  # fmt: skip
