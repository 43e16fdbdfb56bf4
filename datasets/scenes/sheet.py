"""A labelled contact sheet of rendered scenes: every output of the renderer side by side."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from datasets.scenes.batch import SceneBatch, render
from datasets.scenes.describe import SceneOptions, eval_seed
from datasets.scenes.layout import sample_scene
from ldm.images import write_png
from ldm.settings.schema import setting

COLUMNS = ("scene", "one solid removed", "inverse depth", "instances", "amodal mask", "reference")
MARGIN, HEADER, FOOTER = 8, 26, 22
INK, PAPER, FAINT = (30, 30, 34), 250, (110, 110, 118)
FONT = cv2.FONT_HERSHEY_SIMPLEX
TINTS = np.array(  # room, then solids
    [
        [214, 210, 202],
        [228, 26, 28],
        [55, 126, 184],
        [77, 175, 74],
        [152, 78, 163],
        [255, 127, 0],
        [240, 200, 40],
        [166, 86, 40],
        [247, 129, 191],
        [90, 190, 190],
    ],
    np.uint8,
)


@dataclass(frozen=True)
class SheetSettings(SceneOptions):
    """Which scenes are shown, and where the image goes. Evaluation seeds."""

    size: tuple[int, int] = setting((224, 224), help="height,width of every view", low=16, high=4096)
    supersample: int = setting(2, help="rays per pixel and axis, 2 for best quality", low=1, high=2)
    out: Path = setting(Path("outputs/scenes.png"), help="PNG to write")
    count: int = setting(8, help="scenes, one row each", low=1, high=64)
    first_seed: int = setting(0, help="index of the first evaluation scene", low=0)
    device: str = setting("cpu", help="cpu, cuda or mps")


def write_scene_sheet(settings: SheetSettings) -> Path:
    """Render and write the sheet; returns its path."""
    options = replace(settings, reference_size=(settings.size[0], settings.size[0]))
    scenes = [sample_scene(eval_seed(settings.first_seed + i), options) for i in range(settings.count)]
    write_png(settings.out, draw_sheet(render(scenes, options, settings.device)))
    return settings.out


def draw_sheet(batch: SceneBatch) -> np.ndarray:
    """RGB (h, w, 3) uint8: a header, then one row of panels per scene with its caption below."""
    rows = [_row(batch, index) for index in range(len(batch.facts))]
    header = np.full((HEADER, rows[0].shape[1], 3), PAPER, np.uint8)
    x = MARGIN
    for name, panel in zip(COLUMNS, _panels(batch, 0), strict=True):
        cv2.putText(header, name, (x, HEADER - 8), FONT, 0.45, INK, 1, cv2.LINE_AA)
        x += panel.shape[1] + MARGIN
    return np.concatenate([header, *rows])


def _row(batch: SceneBatch, index: int) -> np.ndarray:
    panels = _panels(batch, index)
    height = max(panel.shape[0] for panel in panels)
    width = sum(panel.shape[1] + MARGIN for panel in panels) + MARGIN
    row = np.full((height + FOOTER, width, 3), PAPER, np.uint8)
    x = MARGIN
    for panel in panels:
        row[: panel.shape[0], x : x + panel.shape[1]] = panel
        x += panel.shape[1] + MARGIN
    cv2.putText(row, _caption(batch, index), (MARGIN, height + 14), FONT, 0.42, FAINT, 1, cv2.LINE_AA)
    return row


def _caption(batch: SceneBatch, index: int) -> str:
    fact = batch.facts[index]
    d, far, near = fact.depths[fact.removed]
    told = fact.captions[0] if fact.captions else fact.names[fact.removed]
    pose = "same pose" if fact.same_pose else "another view"
    share = f"{100 * fact.visible[fact.removed]:.0f} % visible"
    return f"{told}; depth {d:.2f} ({far:.2f} to {near:.2f}), {share}; reference: {pose}, another lamp"


def _panels(batch: SceneBatch, index: int) -> list[np.ndarray]:
    removed = batch.facts[index].removed
    image = _u8(batch.image_01[index])
    amodal, seen = batch.amodal[index, removed].cpu().numpy(), batch.visible[index, removed].cpu().numpy()
    outline = (image * 0.35 + 160 * 0.65).astype(np.uint8)
    outline[amodal] = (255, 160, 60)
    outline[seen] = (40, 120, 220)
    without, reference = _u8(batch.without_01[index]), _u8(batch.reference_01[index])
    return [image, without, _depth(batch.depth_01[index]), _instances(batch, index), outline, reference]


def _u8(colours_01: Tensor) -> np.ndarray:
    return np.ascontiguousarray((colours_01 * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _depth(depth_01: Tensor) -> np.ndarray:
    gray = (depth_01 * 255).round().byte().cpu().numpy()
    return np.ascontiguousarray(cv2.applyColorMap(gray, cv2.COLORMAP_INFERNO)[..., ::-1])


def _instances(batch: SceneBatch, index: int) -> np.ndarray:
    label = batch.instances[index].cpu().numpy()
    tint = TINTS[np.where(label > 0, 1 + (label - 1) % (len(TINTS) - 1), 0)]
    light = _u8(batch.image_01[index]).mean(-1, keepdims=True) / 255
    return (tint * (0.55 + 0.45 * light)).astype(np.uint8)
