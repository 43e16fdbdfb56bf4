"""Does each mask show what its own prompt names? Six models, as in the paper's table.

    python -m tiny.inpainter.evaluate --run runs/tiny/inpainter --data data/scenes/views_eval

plain           all prompts joined, read everywhere           (Stable Diffusion's inpainting model)
rca             rectified cross-attention, each prompt encoded alone, nothing trained
rca_joint       the same with all prompts in one token sequence, as published
finetuned       LoRA on several masks, prompts joined
rca_finetuned   LoRA on several masks, rectified cross-attention
joint_finetuned LoRA on several masks, rectified cross-attention on one token sequence, as published

Colour and shape are read by a classifier that was trained on renders of other seeds; what it makes of the
true renders is the ceiling. Painted images are kept, so an interrupted evaluation continues.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpainting.models.text_to_image.load import load_inpainter
from ldm.files import hash_folder, write_all_atomic, write_atomic
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import CheckedSettings, setting, to_plain
from tiny.inpainter.autoencoder import round_trip_db
from tiny.inpainter.cases import ASKED, Case, make_cases
from tiny.inpainter.classifier import Judge, load_judge, verdicts
from tiny.inpainter.report import Record, rows, sheet, table
from tiny.inpainter.sample import Sampling, Way, paint_examples
from tiny.regions import read_views, refuse_training_scenes

logger = logging.getLogger(__name__)

# name -> (LoRA folder of the run, how prompts reach their masks)
MODELS: dict[str, tuple[str, Way]] = {
    "plain": ("", Way(False)),
    "rca_joint": ("", Way(True, "joint")),
    "rca": ("", Way(True)),
    "finetuned": ("plain/lora", Way(False)),
    "rca_finetuned": ("rca/lora", Way(True)),
    "joint_finetuned": ("joint/lora", Way(True, "joint")),
}


@dataclass(frozen=True)
class EvaluateConfig(CheckedSettings):
    """What is measured, on what, and where the numbers go."""

    run: Path = setting(Path("runs/tiny/inpainter"), help="folder of the training run")
    data: Path = setting(Path("data/scenes/views_eval"), help="folder of shards of held-out scenes")
    out: Path = setting(Path("benchmarks/results"), help="folder of inpainter.json, .txt and .png")
    scenes: int = setting(512, low=1, help="scenes to look at; those with too few solids are left out")
    masks: tuple[int, int] = setting((2, 5), low=1, help="least,most masks of one image")
    asked: tuple[str, ...] = setting(ASKED, choices=ASKED, help="which prompts")
    models: tuple[str, ...] = setting(tuple(MODELS), choices=tuple(MODELS), help="which models")
    seed: int = setting(0, help="of the choice of masks, prompts and noise")
    sampling: Sampling = setting(Sampling(), help="how images are painted")


def run(config: EvaluateConfig) -> None:
    """Does each mask show what its own prompt names? Four models on held-out scenes; writes a table."""
    refuse_training_scenes(config.data)
    views = read_views(config.data, count=config.scenes)
    judge = load_judge(config.run / "judge")
    cases = {asked: make_cases(views, asked, *config.masks, config.seed) for asked in config.asked}
    found: dict[str, dict[str, list[Record]]] = {}
    images: dict[str, np.ndarray] = {}
    for name in config.models:
        for asked in config.asked:
            painted = paint(config, name, asked, cases[asked])
            found.setdefault(name, {})[asked] = judged(judge, cases[asked], painted)
            images.setdefault(name, painted)
    vae = load_inpainter(config.run / "painter" / "model").latent_space.vae
    renders = judged(judge, make_cases(views, "true", *config.masks, config.seed), None)
    report = {
        "settings": to_plain(config),
        "images": {asked: len(some) for asked, some in cases.items()},
        "first_stage_psnr_db": round(round_trip_db(vae, views.images_u8[:128]), 2),
        "judge_on_true_renders": rows(renders),
        "models": {name: {asked: rows(some) for asked, some in by.items()} for name, by in found.items()},
    }
    first = config.asked[0]
    write_all_atomic(
        {
            config.out / "inpainter.json": (json.dumps(report, indent=1) + "\n").encode(),
            config.out / "inpainter.txt": (table(report) + "\n").encode(),
            config.out / "inpainter.png": sheet(cases[first], images),
        }
    )
    logger.info("%s", table(report))


def paint(config: EvaluateConfig, name: str, asked: str, cases: Sequence[Case]) -> np.ndarray:
    """(n, h, w, 3) uint8, from the run's folder if it was painted before by the same networks."""
    folder, way = MODELS[name]
    lora = config.run / folder if folder else None
    base = config.run / "painter" / "model"
    kept = config.run / "evaluation" / f"{name}_{asked}.npz"
    weights = [hash_folder(base), hash_folder(lora) if lora else {}]
    recipe = json.dumps(
        [to_plain(config.sampling), config.seed, config.masks, config.scenes, len(cases), weights]
    )
    if kept.exists():
        with np.load(kept) as stored:
            if str(stored["recipe"]) == recipe:
                return stored["images"]
    seeds = [config.seed * 1_000_003 + index for index in range(len(cases))]
    examples = [case.example for case in cases]
    painted = paint_examples(load_inpainter(base, lora), examples, seeds, way, config.sampling)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=painted, recipe=recipe)
    write_atomic(kept, buffer.getvalue())
    return painted


def judged(judge: Judge, cases: Sequence[Case], painted: np.ndarray | None) -> list[Record]:
    """One record per mask; without painted images (n, h, w, 3) the renders themselves are judged."""
    shown = [case.example.image_u8 for case in cases] if painted is None else list(painted)
    images = [image for image, case in zip(shown, cases, strict=True) for _ in case.wanted]
    colours, shapes = verdicts(judge, images, [box for case in cases for box in case.example.boxes])
    seen = iter(zip(colours, shapes, strict=True))
    return [Record.of(case, index, *next(seen)) for case in cases for index in range(len(case.wanted))]


build_app = single_app(command(EvaluateConfig, run))

if __name__ == "__main__":
    run_module(build_app)
