"""Numbers of all scenes -> tables with intervals, text, and sheets of the best, middle and worst results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cldm.evaluate.cases import Case
from ldm.files import write_atomic
from ldm.metrics.intervals import summary
from ldm.sheet import grid

CUTOUT, BACKGROUND, CEILING = "cut-out as it is", "background left alone", "autoencoder of the truth"
TRUTH, FLIPPED = "true render", "wrong one in front"
DEFAULT = "the model's own settings"
ON_SHEET = 6  # scenes per sheet
COLUMNS = ("background", "reference", "cut-out", "result", "truth")
Table = dict[str, dict[str, dict[str, float | int]]]


@dataclass(eq=False)
class Row:
    """What was found on one scene; every table is by the name of an image."""

    psnr: dict[str, float] = field(default_factory=dict)
    ssim: dict[str, float] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    order: dict[str, list[bool]] = field(default_factory=dict)
    occlusion: dict[str, list[bool]] = field(default_factory=dict)
    changed_outside: int = 0  # pixels
    default_u8: np.ndarray | None = None  # (h, w, 3) result with the model's own settings
    cutout_u8: np.ndarray | None = None


def by_pose(rows: Sequence[dict[str, float]], same_pose: Sequence[bool]) -> Table:
    """{image: {group: summary}} for all scenes, and apart by the pose of the reference."""
    same = np.array(same_pose)
    groups = {"all": np.ones(len(rows), bool), "same pose": same, "other pose": ~same}
    table: Table = {}
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows])
        table[name] = {group: summary(values[which]) for group, which in groups.items() if which.sum() > 1}
    return table


def pooled(scenes: Sequence[dict[str, list[bool]]]) -> dict[str, dict[str, float | int]]:
    """Share of right answers over the pairs of neighbours of all scenes."""
    found: dict[str, list[bool]] = {}
    for scene in scenes:
        for name, right in scene.items():
            found.setdefault(name, []).extend(right)
    return {name: summary(np.array(right, np.float64)) for name, right in found.items()}


def report(
    rows: Sequence[Row],
    same_pose: Sequence[bool],
    ablated: Sequence[dict[str, float]],
    depth_errors: Sequence[dict[str, float]],
) -> dict:
    """All tables. ablated, depth_errors: one entry per scene."""
    gains = [{name: value - row.psnr[CUTOUT] for name, value in row.psnr.items()} for row in rows]
    wins = [{name: float(gain > 0) for name, gain in row.items()} for row in gains]
    has_identity = bool(rows[0].identity)
    return {
        "changed_outside": sum(row.changed_outside for row in rows),
        "psnr_visible_db": by_pose([row.psnr for row in rows], same_pose),
        "ssim_visible": by_pose([row.ssim for row in rows], same_pose),
        "gain_over_cutout_db": by_pose(gains, same_pose),
        "wins_against_cutout": by_pose(wins, same_pose),
        "identity_1_of_8": by_pose([row.identity for row in rows], same_pose) if has_identity else {},
        "occlusion_order": pooled([row.occlusion for row in rows]),
        "depth_order": pooled([row.order for row in rows]),
        "ablations_psnr_db": by_pose(ablated, same_pose[: len(ablated)]) if len(ablated) > 1 else {},
        "depth_network": {
            name: summary([error[name] for error in depth_errors]) for name in ("mae", "order")
        },
    }


def show(result: dict) -> str:
    """The numbers as a text table."""
    lines = []
    titles = {
        "psnr_visible_db": "PSNR over the visible object, dB",
        "ssim_visible": "SSIM over the visible object",
        "gain_over_cutout_db": "PSNR above that of the cut-out in the same scene, dB",
        "wins_against_cutout": "share of scenes closer to the truth than the cut-out",
        "identity_1_of_8": "share of scenes where the right one of 8 objects is nearest",
        "ablations_psnr_db": "PSNR from noise without one part, dB",
    }
    for key, title in titles.items():
        if result[key]:
            lines += [f"{title:58}{'all':>26}{'same pose':>28}{'other pose':>28}"]
            lines += [_row(name, groups) for name, groups in result[key].items()] + [""]
    pooled_titles = {
        "occlusion_order": "share of neighbours where the right one is seen in front",
        "depth_order": "share of neighbours in the right order, depth re-estimated",
        "depth_network": "depth network on the backgrounds",
    }
    for key, title in pooled_titles.items():
        lines += [f"{title:58}{'all':>26}"]
        lines += [_row(name, {"all": numbers}) for name, numbers in result[key].items()] + [""]
    return "\n".join([*lines, f"pixels changed outside the mask: {result['changed_outside']}"])


def _row(name: str, groups: dict[str, dict[str, float]]) -> str:
    columns = [_interval(groups[group]) for group in ("all", "same pose", "other pose") if group in groups]
    return f"{name:58}{columns[0]:>26}" + "".join(f"{column:>28}" for column in columns[1:])


def _interval(numbers: dict[str, float]) -> str:
    """Mean and 95 % interval."""
    if "mean" not in numbers:
        return f"- n = {numbers.get('n', 0)}"
    interval = f"[{numbers['low']:.3f}, {numbers['high']:.3f}]"
    return f"{numbers['mean']:.3f} {interval:>18}"


def ranked(rows: Sequence[Row], count: int) -> dict[str, list[int]]:
    """Scenes by their gain in PSNR over the cut-out: the best, the middle and the worst `count`."""
    gains = np.array([row.psnr[DEFAULT] - row.psnr[CUTOUT] for row in rows])
    order = np.argsort(-gains, kind="stable").tolist()
    middle = max(0, (len(order) - count) // 2)
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}


def write_sheets(out: Path, chosen: Sequence[Case], rows: Sequence[Row]) -> list[Path]:
    """Three PNG files beside `out`."""
    paths = []
    for name, indices in ranked(rows, ON_SHEET).items():
        sheet = [[chosen[i].inputs.background_u8, chosen[i].inputs.reference_u8, rows[i].cutout_u8,
                  rows[i].default_u8, chosen[i].truth_u8] for i in indices]  # fmt: skip
        labels = [f"{rows[i].psnr[CUTOUT]:.1f} to {rows[i].psnr[DEFAULT]:.1f} dB" for i in indices]
        buffer = io.BytesIO()
        Image.fromarray(grid(sheet, COLUMNS, labels, cell=160)).save(buffer, "PNG")
        paths.append(out.with_name(f"{out.stem}_{name}.png"))
        write_atomic(paths[-1], buffer.getvalue())
    return paths
