"""Numbers of all scenes -> tables with intervals, text, and which scenes are best, middle and worst."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cldm.evaluate.cases import SceneCase
from ldm.metrics.intervals import Estimate, mean_interval

CUTOUT, DEFAULT = "cut-out as it is", "the model's own settings"  # images by name
ON_SHEET = 6  # scenes per sheet
GROUPS = ("all", "same pose", "other pose")  # of scenes, by the pose of the reference
TITLES = {  # of the tables in the text
    "psnr_visible_db": "PSNR over the visible object, dB",
    "ssim_visible": "SSIM over the visible object",
    "gain_over_cutout_db": "PSNR above that of the cut-out in the same scene, dB",
    "wins_against_cutout": "fraction of scenes closer to ground truth than the cut-out",
    "identity_1_of_8": "fraction of scenes: the right one of 8 objects is nearest",
    "ablations_psnr_db": "PSNR from noise without one part, dB",
    "occlusion_order": "fraction of neighbours: the right one is seen in front",
    "depth_order": "fraction of neighbours in the right order, re-estimated",
    "depth_network": "depth network on the backgrounds",
}
POOLED = ("occlusion_order", "depth_order", "depth_network")  # tables without groups
Table = dict[str, dict[str, Estimate]]


@dataclass(eq=False)
class SceneScores:
    """What was measured on one scene; every table is by the name of an image."""

    psnr: dict[str, float] = field(default_factory=dict)
    ssim: dict[str, float] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    order: dict[str, list[bool]] = field(default_factory=dict)
    occlusion: dict[str, list[bool]] = field(default_factory=dict)
    changed_outside: int = 0  # pixels
    default_u8: np.ndarray | None = None  # (h, w, 3) result with the model's own settings
    cutout_u8: np.ndarray | None = None


def by_pose(scenes: Sequence[dict[str, float]], same_pose: Sequence[bool]) -> Table:
    """{image: {group: estimate}} of the first scenes, for all and apart by the pose of the reference."""
    same = np.array(same_pose[: len(scenes)])
    groups = dict(zip(GROUPS, (np.ones(len(scenes), bool), same, ~same), strict=True))
    groups = {group: which for group, which in groups.items() if which.sum() > 1}
    table: Table = {}
    for name in scenes[0] if scenes else ():
        values = np.array([scene[name] for scene in scenes])
        table[name] = {group: mean_interval(values[which]) for group, which in groups.items()}
    return table


def pooled_rates(scenes: Sequence[dict[str, list[bool]]]) -> dict[str, Estimate]:
    """Fraction of right answers over the pairs of neighbours of all scenes."""
    answers: dict[str, list[bool]] = {}
    for scene in scenes:
        for name, right in scene.items():
            answers.setdefault(name, []).extend(right)
    return {name: mean_interval(np.array(right, np.float64)) for name, right in answers.items()}


def make_tables(
    scores: Sequence[SceneScores], cases: Sequence[SceneCase], ablated: Sequence[dict[str, float]]
) -> dict:
    """All tables. ablated: PSNR of the first scenes without one part."""
    same_pose = [case.same_pose for case in cases]
    gains = [{name: value - row.psnr[CUTOUT] for name, value in row.psnr.items()} for row in scores]
    wins = [{name: float(gain > 0) for name, gain in row.items()} for row in gains]
    errors = {name: [case.depth_error[name] for case in cases] for name in ("mae", "order")}
    return {
        "changed_outside": sum(row.changed_outside for row in scores),
        "psnr_visible_db": by_pose([row.psnr for row in scores], same_pose),
        "ssim_visible": by_pose([row.ssim for row in scores], same_pose),
        "gain_over_cutout_db": by_pose(gains, same_pose),
        "wins_against_cutout": by_pose(wins, same_pose),
        "identity_1_of_8": by_pose([row.identity for row in scores], same_pose),
        "occlusion_order": pooled_rates([row.occlusion for row in scores]),
        "depth_order": pooled_rates([row.order for row in scores]),
        "ablations_psnr_db": by_pose(ablated, same_pose) if len(ablated) > 1 else {},
        "depth_network": {name: mean_interval(values) for name, values in errors.items()},
    }


def text_tables(result: dict) -> str:
    """The numbers as text: mean and 95 % interval."""
    lines = []
    for key, title in TITLES.items():
        table = {name: {"all": row} for name, row in result[key].items()} if key in POOLED else result[key]
        if not table and key not in POOLED:
            continue
        columns = GROUPS[:1] if key in POOLED else GROUPS
        lines.append(
            f"{title:58}" + "".join(f"{group:>{28 if i else 26}}" for i, group in enumerate(columns))
        )
        for name, groups in table.items():
            line = f"{name:58}"
            for i, numbers in enumerate(groups[group] for group in GROUPS if group in groups):
                cell = f"- n = {numbers.get('n', 0)}"
                if "mean" in numbers:
                    interval = f"[{numbers['low']:.3f}, {numbers['high']:.3f}]"
                    cell = f"{numbers['mean']:.3f} {interval:>18}"
                line += f"{cell:>{28 if i else 26}}"
            lines.append(line)
        lines.append("")
    return "\n".join([*lines, f"pixels changed outside the mask: {result['changed_outside']}"])


def ranked(scores: Sequence[SceneScores], count: int = ON_SHEET) -> dict[str, list[int]]:
    """Scenes by their gain in PSNR over the cut-out: the best, the middle and the worst `count`."""
    gains = np.array([row.psnr[DEFAULT] - row.psnr[CUTOUT] for row in scores])
    order = np.argsort(-gains, kind="stable").tolist()
    middle = max(0, (len(order) - count) // 2)
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
