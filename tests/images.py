"""Synthetic images, and one composite as the command line takes it, for tests that need no real data."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.images import read_image, write_depth, write_mask, write_png
from ldm.settings.cli import run_app
from run_inference import build_app


def room(h: int = 96, w: int = 128) -> np.ndarray:
    """(h, w, 3) uint8: a wall and a floor with a pattern; no two regions look alike."""
    y, x = (axis.astype(np.float32) for axis in np.ogrid[0:h, 0:w])
    floor = y > 0.6 * h
    tiles = ((x // max(1, w // 8) + y // max(1, h // 8)) % 2) * 40 * floor
    room_u8 = np.empty((h, w, 3), np.uint8)
    for channel, levels in enumerate((60 + 150 * x / w, 90 + 120 * y / h, 200 - 100 * floor - tiles)):
        room_u8[..., channel] = levels
    return room_u8


def room_depth(h: int = 96, w: int = 128) -> np.ndarray:
    """(h, w) depth_01: the floor comes nearer towards the bottom; a post at the left quarter is nearest."""
    depth_01 = np.repeat(np.linspace(0, 0.8, h, dtype=np.float32)[:, None], w, axis=1)
    depth_01[:, : max(1, w // 4)] = 1.0
    return depth_01


def thing(side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An object on white (side, side, 3) uint8 and its mask (side, side) bool."""
    mask_image = Image.new("L", (side, side))
    ImageDraw.Draw(mask_image).ellipse((side * 0.2, side * 0.15, side * 0.8, side * 0.9), fill=255)
    mask = np.array(mask_image) > 0
    y, x = np.mgrid[0:side, 0:side]
    stripes = np.where((x + y) // 6 % 2, 230, 60)
    body = np.dstack([stripes, 40 + 0 * stripes, 255 - stripes])
    return np.where(mask[..., None], body, 255).astype(np.uint8), mask


@dataclass(frozen=True)
class Case:
    """Files of one composite in `folder`; a run takes a fraction of a second."""

    folder: Path
    model: Path
    depth_model: Path

    @property
    def out(self) -> Path:
        """Where the composite goes; its folder does not exist at first."""
        return self.folder / "out" / "a.png"

    def argv(self, *extra: str | Path, without: Sequence[str] = ()) -> list[str]:
        """The command line of the image verb. Of an option given twice the later one holds."""
        options: dict[str, str | Path] = {
            "--background": self.folder / "room.png",
            "--background-depth": self.folder / "depth.png",
            "--object": self.folder / "thing.png",
            "--object-mask": self.folder / "mask.png",
            "--box": "0.3,0.2,0.7,0.9",
            "--depth": "0.6",
            "--model": self.model,
            "--out": self.out,
        }
        kept = [(name, value) for name, value in options.items() if name not in without]
        flags = ["--no-sheet", *(str(text) for pair in kept for text in pair)]
        return ["image", *flags, *(str(text) for text in extra)]

    def run(self, *extra: str | Path, without: Sequence[str] = ()) -> int:
        """Exit code of the command, run in this process."""
        return run_app(build_app, self.argv(*extra, without=without))

    def report(self, path: Path | None = None) -> dict[str, Any]:
        """The JSON beside a composite."""
        return json.loads((path or self.out).with_suffix(".json").read_text(encoding="utf-8"))

    def unchanged_outside(self, background_u8: np.ndarray, out: Path | None = None) -> np.ndarray:
        """The composite (h, w, 3), after checking it and its report against the background."""
        result_u8 = read_image(out or self.out).rgb_u8
        assert result_u8.shape == background_u8.shape
        drift = self.report(out)["drift"]
        assert drift["changed_outside"] == drift["max_abs_outside"] == 0
        changed = (result_u8 != background_u8).any(axis=2)
        assert 0 < changed.sum() == drift["changed_inside"]
        return result_u8

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file and folder of the case with its size and time, to see that nothing was written."""
        found = sorted(self.folder.rglob("*"))
        return {path.as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def write_case(folder: Path, model: Path, depth_model: Path) -> Case:
    """The images that a case starts from."""
    rgb_u8, mask = thing()
    write_png(folder / "room.png", room())
    write_depth(folder / "depth.png", room_depth())
    write_png(folder / "thing.png", rgb_u8)
    write_mask(folder / "mask.png", mask)
    target = np.zeros((96, 128), bool)
    target[30:80, 50:90] = True
    write_mask(folder / "target.png", target)
    return Case(folder, model, depth_model)


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on reading any weights is a defect."""

    def slow(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read before the input was checked")

    monkeypatch.setattr("compose.models.load_compositor", slow)
    monkeypatch.setattr("compose.models.DepthEstimator.load", slow)


def refusal(case: Case, run: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must refuse and write nothing."""
    before = case.files()
    capsys.readouterr()
    assert run() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", shown.err), shown.err
    assert case.files() == before
    assert not any(
        word in shown.err for word in ("Traceback", "Errno", "PIL.", "reference_u8", "depth_01", "None")
    )
    return shown.err
