"""Render the example images in assets/examples with the repository's own renderer.

    python -m scripts.docs.make_examples

Each example is a folder: room.png (the scene without the object), object.png (the object alone, seen from
another side under another lamp, on white with alpha), room_depth.png (16-bit inverse depth of the room,
bright = near), truth.png (the scene with the object) and anchors.json (the objects that stay, with boxes and
depths, as `--anchors` takes them). cases.json lists the examples with box and depth in the form that
compose.contact_sheet reads. Evaluation seeds: no model was trained on these scenes.
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from datasets.relations import Place
from datasets.scenes import SceneOptions, eval_seed
from ldm.decode import LoadedImage
from ldm.files import write_atomic, write_json
from ldm.images import encode_image, write_depth, write_png
from ldm.settings.cli import run_module, single_app

FOLDER = Path("assets/examples")
# Name -> index of the evaluation scene. In each of them a nearer object hides a part of the object.
EXAMPLES = {"cone": 1041, "pyramid": 1024, "tent": 1005, "dome": 1071}
OPTIONS = SceneOptions(
    size=(384, 512), supersample=2, reference_size=(256, 256), reference_pose="other", occluded=1.0
)
LEAST_VISIBLE = 0.2  # visible fraction of a solid that a sentence may speak of; chosen by eye
CONVENTIONS = (
    "Paths start from this folder. box_xyxy: fractions of the room, top-left origin. depth_range: far,near "
    "of the object in relative inverse depth of the room, 1 = nearest. truth: the scene with the object."
)


def make_examples(out: Annotated[Path, typer.Option(help="folder of the examples")] = FOLDER) -> None:
    """Render every example and the list of them."""
    if out != FOLDER and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} holds files, which would be overwritten; name a new folder")
    from ldm.checkpoints import folder_written_whole

    with folder_written_whole(out) as folder:
        write_examples(folder)


def write_examples(out: Path) -> None:
    from datasets.scenes import render, sample_scene
    from datasets.scenes.store import from_01
    from llava_bifrost.propose import as_json

    cases = []
    for name, index in EXAMPLES.items():
        batch = render([sample_scene(eval_seed(index), OPTIONS)], OPTIONS)
        facts, folder = batch.facts[0], out / name
        for file, scene_01 in (("room.png", batch.without_01[0]), ("truth.png", batch.image_01[0])):
            scene = LoadedImage(from_01(scene_01), photograph=False)
            write_atomic(folder / file, encode_image(scene, ".png"))
        write_depth(folder / "room_depth.png", batch.without_depth_01[0].numpy())
        alpha = batch.reference_mask[0].numpy().astype(np.uint8) * 255
        write_png(folder / "object.png", from_01(batch.reference_01[0]), alpha_u8=alpha)
        seen = [i for i, part in enumerate(facts.visible) if i != facts.removed and part >= LEAST_VISIBLE]
        anchors = {facts.names[i]: Place(facts.boxes01[i], *facts.depths[i]) for i in seen}
        write_json(folder / "anchors.json", as_json(anchors))
        _, far, near = facts.depths[facts.removed]
        clause = f"{facts.names[facts.removed]} behind "
        caption = next((text for text in facts.captions if clause in text), facts.captions[0])
        cases.append({
            "id": name, "mode": "place", "background": f"{name}/room.png", "object": f"{name}/object.png",
            "background_depth": f"{name}/room_depth.png", "truth": f"{name}/truth.png",
            "box_xyxy": [round(value, 4) for value in facts.boxes01[facts.removed]],
            "depth_range": [round(far, 4), round(near, 4)], "caption": caption,
            "visible": round(facts.visible[facts.removed], 3), "seed": facts.seed})  # fmt: skip
        logging.getLogger(__name__).info("%s: %s", folder, caption)
    write_json(out / "cases.json", {"conventions": CONVENTIONS, "cases": cases})


build_app = single_app(make_examples)

if __name__ == "__main__":
    run_module(build_app)
