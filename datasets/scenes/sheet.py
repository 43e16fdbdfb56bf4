"""A labelled contact sheet of rendered scenes: every output of the renderer side by side."""

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from datasets.scenes.batch import render
from datasets.scenes.layout import sample_scene
from datasets.scenes.settings import SheetSettings, eval_seed
from ldm.images import encode_png
from ldm.result import write_result
from ldm.sheet import grid

COLUMNS = ("scene", "one solid removed", "inverse depth", "instances", "amodal mask", "reference")
TINTS = np.array([  # room, then solids
    (214, 210, 202), (228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163),
    (255, 127, 0), (240, 200, 40), (166, 86, 40), (247, 129, 191), (90, 190, 190),
], np.uint8)  # fmt: skip


def write_scene_sheet(settings: SheetSettings) -> Path:
    """Write a labelled contact sheet of evaluation scenes."""
    options = replace(settings, reference_size=(settings.size[0], settings.size[0]))
    scenes = [sample_scene(eval_seed(settings.first_seed + i), options) for i in range(settings.count)]
    batch = render(scenes, options, settings.device)
    rows, captions = [], []
    for index, fact in enumerate(batch.facts):
        removed, image = fact.removed, from_01(batch.image_01[index])
        outline = (image * 0.35 + 160 * 0.65).astype(np.uint8)
        outline[batch.amodal[index, removed].cpu().numpy()] = (255, 160, 60)
        outline[batch.visible[index, removed].cpu().numpy()] = (40, 120, 220)
        gray = (batch.depth_01[index] * 255).round().byte().cpu().numpy()
        depth = cv2.applyColorMap(gray, cv2.COLORMAP_INFERNO)[..., ::-1]
        label = batch.instances[index].cpu().numpy()
        tint = TINTS[np.where(label > 0, 1 + (label - 1) % (len(TINTS) - 1), 0)]
        instances = (tint * (0.55 + 0.45 * image.mean(-1, keepdims=True) / 255)).astype(np.uint8)
        without, reference = from_01(batch.without_01[index]), from_01(batch.reference_01[index])
        rows.append([image, without, depth, instances, outline, reference])
        d, far, near = fact.depths[removed]
        words = fact.captions[0] if fact.captions else fact.names[removed]
        seen = f"depth {d:.2f} ({far:.2f} to {near:.2f}), {100 * fact.visible[removed]:.0f} % visible"
        view = "same pose" if fact.same_pose else "another view"
        captions.append(f"{words}; {seen}; reference: {view}, another lamp")
    sheet_u8 = grid(rows, COLUMNS, captions, cell=max(settings.size))
    write_result({settings.out: encode_png(sheet_u8)}, settings.overwrite)
    logging.getLogger(__name__).info("wrote %s", settings.out)
    return settings.out


def from_01(image_01: Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] -> RGB (h, w, 3) uint8, rounded."""
    return (image_01 * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
