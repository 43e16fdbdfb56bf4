"""Job files and the DreamBooth test set in small, for the tests of batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ldm.images import write_mask, write_png
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.images import Case, room, thing

HIDDEN = {"box": [0.02, 0.3, 0.2, 0.8], "depth": [0.1]}  # behind the post at the left


def job(case: Case, **changes: Any) -> dict[str, Any]:
    """A line that runs."""
    plain = {
        "background": "room.png", "background_depth": "depth.png", "object": "thing.png",
        "object_mask": "mask.png", "box": [0.3, 0.2, 0.7, 0.9], "depth": [0.6],
        "model": case.model.as_posix(),
    }  # fmt: skip
    return {**plain, **changes}


def write(case: Case, *lines: dict[str, Any] | str) -> Path:
    path = case.folder / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def batch(case: Case, *flags: str) -> int:
    argv = ["batch", str(case.folder / "jobs.jsonl"), "--out", str(case.folder / "many")]
    return run_app(build_app, [*argv, "--root", str(case.folder), *flags])


def made(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def cutouts(folder: Path) -> tuple[Path, Path]:
    """The first layout: two concepts, two backgrounds."""
    rgb_u8, mask = thing()
    for concept in ("cat", "dog"):
        write_png(folder / "fg" / concept / "02.png", rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
        write_png(folder / "fg" / concept / "10.png", np.zeros_like(rgb_u8), alpha_u8=mask * np.uint8(255))
    target = np.zeros((96, 128), bool)
    target[30:80, 50:90] = True
    for name in ("000000003658", "000000047948"):
        write_png(folder / "bg" / f"{name}_GT.png", room())
        write_mask(folder / "bg" / f"{name}_mask.png", target)
    return folder / "fg", folder / "bg"


def masked(folder: Path) -> tuple[Path, Path, Path]:
    """The second layout: masks of the objects beside them, black where the background is filled."""
    rgb_u8, mask = thing()
    for concept in ("cat", "dog"):
        write_png(folder / "objects" / f"{concept}.png", rgb_u8)
        write_mask(folder / "masks" / f"{concept}.png", mask)
    target = np.zeros((96, 128), bool)
    target[30:80, 50:90] = True
    for name in ("street_1", "beach_2"):
        write_png(folder / "bg" / f"{name}.png", room())
        write_mask(folder / "bg" / f"{name}_mask.png", ~target)
    return folder / "objects", folder / "bg", folder / "masks"


def dreambooth(case: Case, objects: Path, backgrounds: Path, *flags: str) -> int:
    argv = ["dreambooth", "--objects", str(objects), "--backgrounds", str(backgrounds)]
    argv += ["--out", str(case.folder / "db"), "--model", str(case.model)]
    return run_app(build_app, [*argv, "--depth-model", str(case.depth_model), *flags])
