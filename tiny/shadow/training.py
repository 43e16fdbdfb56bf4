"""The small shadow network, its training on counterfactual pairs, and its measures on validation scenes.

A rendered scene exists with and without one solid, so what that darkens is known exactly.
Legend: b batch, n = `ldm.experts.shadow.SIDE`; light is luminance in [0, 1], its fall what the solid takes.
"""

import logging

import cv2
import numpy as np
import torch
from diffusers import UNet2DModel
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from datasets.augment import gain_table
from datasets.fusion import tight_cutout
from datasets.geometry import bbox_of_mask, tight_slices
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import depth_01, render_shards
from datasets.sources.rendered import RenderedScenes
from ldm.checkpoints import drawing, folder_written_whole, save_part
from ldm.experts.shadow import CELL, CHANNELS, SIDE, darkening, network_input
from ldm.files import write_json, written_whole
from ldm.images import resize
from ldm.settings.config import to_plain
from ldm.training.run import CsvLogger
from tiny.loop import Stage, stages_manifest
from tiny.shadow.train import ShadowScenes, TrainShadowConfig

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
VALIDATION = 1 << 20  # the first of the evaluation seeds that no benchmark reaches
QUADRATIC = 0.05  # of light; smaller errors count by their square
Example = tuple[Tensor, ...]  # input (CHANNELS, n, n); light before, fall, ground: (n, n)


def create_shadow_network(channels: tuple[int, ...], seed: int) -> UNet2DModel:
    """The untrained network; attention at its coarsest level."""
    rest = len(channels) - 1
    with drawing(seed):
        return UNet2DModel(
            sample_size=SIDE // CELL, in_channels=CHANNELS * CELL**2, out_channels=CELL**2,
            block_out_channels=channels, layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
            down_block_types=("DownBlock2D",) * rest + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * rest)  # fmt: skip


def load_scenes(config: ShadowScenes, held_out: bool) -> RenderedScenes:
    """Full views of SIDE pixels; what is missing is rendered."""
    name, count = ("held_out", config.held_out) if held_out else ("train", config.train)
    settings = StoreSettings(
        out=config.folder / name, count=count, split="eval" if held_out else "train",
        first_seed=VALIDATION if held_out else 0, size=(SIDE, SIDE), reference_size=(16, 16),
        smooth_edges=held_out)  # fmt: skip
    render_shards(settings)
    return RenderedScenes(settings.out)


def shadow_example(
    scenes: RenderedScenes, index: int, zoom: float, own_depth: bool, rng: np.random.Generator | None = None
) -> Example:
    """A square round the solid of a scene, `zoom` times its size where the view has that.

    own_depth: the solid's true depth where it is seen, else a rounded body's. rng: for other places in the
    square, colours and sides
    """
    fact, far_near = scenes.facts(index), scenes.facts(index).depths[scenes.facts(index).removed]
    images = [scenes.array(f"{name}_u8", index) for name in ("without", "image")]
    behind_01, seen_01 = (depth_01(scenes.array(f"{name}_u16", index)) for name in ("without_depth", "depth"))
    owner, mask = scenes.array("instances_u8", index), scenes.array("amodal", index)[fact.removed]
    own_01 = np.full(mask.shape, far_near[0], np.float32)
    if own_depth:
        own_01 = np.where(owner == fact.removed + 1, seen_01, own_01)
    else:
        relief_01 = tight_cutout(images[1], mask, None).depth_01
        own_01[tight_slices(mask)] = far_near[1] + (far_near[2] - far_near[1]) * relief_01
    ground = np.isin(owner, (0, fact.supports[fact.removed] + 1)) & ~mask
    x0, y0, x1, y1 = bbox_of_mask(mask)
    longest = max(x1 - x0, y1 - y0)
    side = min(max(round(zoom * longest), longest), len(mask))
    aside = (0, 0) if rng is None else rng.uniform(-0.2, 0.2, 2) * (side - longest)
    left, top = (
        int(np.clip((a + b) / 2 + o - side / 2, 0, len(mask) - side))
        for a, b, o in zip((x0, y0), (x1, y1), aside, strict=True)
    )
    turn = 1 if rng is None else int(rng.choice((1, -1)))
    part = np.s_[top : top + side, left : left + side]
    whole = *images, behind_01, own_01, mask, ground
    planes = [np.ascontiguousarray(plane[part][:, ::turn]) for plane in whole]
    if rng is not None:
        table = gain_table(np.exp(rng.uniform(-0.3, 0.2) + rng.uniform(-0.15, 0.15, 3)))
        order = rng.permutation(3)
        planes[:2] = [cv2.LUT(np.ascontiguousarray(image[..., order]), table) for image in planes[:2]]
    before_u8, after_u8, behind_01, own_01, mask, ground = (
        resize(plane.astype(np.float32) if plane.dtype == bool else plane, (SIDE, SIDE), how="linear")
        for plane in planes
    )
    inputs = network_input(before_u8, behind_01, mask, own_01)
    light, after = (image.astype(np.float32) @ LUMINANCE / 255 for image in (before_u8, after_u8))
    fall = np.maximum(light - after, 0)
    return inputs, *(torch.from_numpy(plane) for plane in (light, fall, (ground > 0.99).astype(np.float32)))


def stacked(examples: list[Example]) -> list[Tensor]:
    """(b, ...) of each part."""
    return [torch.stack(parts) for parts in zip(*examples, strict=True)]


@torch.no_grad()
def measure_shadow(model: UNet2DModel, examples: list[Example]) -> dict[str, float]:
    """Of the fall of light on the ground: how much is predicted (recall), how much of what is predicted is
    true (precision), their harmonic mean, and the dB that the ground comes closer to the true image.
    """
    wanted = there = both = 0.0
    gains = list[float]()
    for start in range(0, len(examples), 25):
        inputs, light, fall, ground = stacked(examples[start : start + 25])
        ours = darkening(model, inputs) * light
        wanted, there = wanted + float((fall * ground).sum()), there + float((ours * ground).sum())
        both += float((torch.minimum(ours, fall) * ground).sum())
        errors = [((value - fall).square() * ground).sum((1, 2)) + 1e-4 for value in (torch.zeros(()), ours)]
        gains += (10 * torch.log10(errors[0] / errors[1])).tolist()
    found = {"recall": both / wanted, "precision": both / max(there, 1e-6)}
    return {**found, "f1": 2 * both / (wanted + there), "gain_db": float(np.mean(gains))}


def train_shadow(config: TrainShadowConfig) -> None:
    """Train the shadow network: render, train, measure, save."""
    model = create_shadow_network(config.channels, config.seed)
    free = ("out", "steps", "minutes", "save_every_s", "log_every")
    same = {name: value for name, value in to_plain(config).items() if name not in free}
    stage = Stage("shadow", model, config, config.out, same=same)
    validation = load_scenes(config.scenes, held_out=True)
    held_out = [shadow_example(validation, index, 4.0, index % 2 > 0) for index in range(len(validation))]
    scenes = validation if stage.done else load_scenes(config.scenes, held_out=False)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, examples = np.random.default_rng((config.seed, step)), list[Example]()
        for index in rng.integers(len(scenes), size=config.batch):
            zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
            examples.append(shadow_example(scenes, int(index), zoom, rng.random() < config.own_depth, rng))
        inputs, light, fall, ground = stacked(examples)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            ours = darkening(model, inputs) * light
        error = functional.smooth_l1_loss(ours, fall, beta=QUADRATIC, reduction="none") * ground
        measured = (step + 1) % config.log_every == 0
        return error.sum() / (fall * ground).sum(), measure_shadow(model, held_out) if measured else {}

    stage.train(loss)
    measures = measure_shadow(model, held_out)
    logging.getLogger(__name__).info("held out: %s", measures)
    # The course of the run, from its log: recall and precision on validation scenes over steps.
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), CsvLogger(config.out / stage.log_file).rows()
    for name in ("recall", "precision", "loss"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*np.array(points).reshape(-1, 2).T, label=name)
    axes.set(xlabel="steps", ylim=(0, 1))
    axes.legend()
    with written_whole(config.out / "curve.png") as path:
        figure.savefig(path, format="png", metadata={"Software": None})
    manifest = stages_manifest("shadow", model, [stage], config, config.seed, held_out=measures)
    with folder_written_whole(config.out / "network") as folder:
        save_part(model, folder)
        write_json(folder / "manifest.json", manifest)
