"""How often does the small prompt writer name what a mask hides, beside what is possible at all?

    python -m tiny.prompter.evaluate --model runs/tiny/prompter/model

1mask           one mask is painted
multimask       several masks are painted, all regions count
multimask last  the same answers, only the last region of each counts

prompter        the model, through the path that inference takes
another image the same masks painted over another scene: what it guesses without evidence
trained blind   a model that never saw an image
box alone       what the place and the sides of a mask give away, by the nearest masks of other scenes
law             the best guess of a reader that recognises every visible solid
ceiling         what the law is right on average, exactly, given what is visible in these images
prior           any constant answer, exactly

The gap is the model's share of the way from the prior to the ceiling.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.prompts import paint_masks
from ldm.files import hash_folder, write_all_atomic
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import CheckedSettings, setting, to_plain
from ldm.sheet import grid
from tiny.prompter.baselines import best_guess, predictive
from tiny.prompter.cases import Case, bayes_optimal_answers, box_answers, make_case
from tiny.prompter.data import open_sets
from tiny.prompter.report import Verdict, report, table
from tiny.prompter.words import MASKS
from tiny.regions import refuse_training_scenes
from tiny.words import COLOUR_WORDS, SHAPE_WORDS, caption

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatePrompter(CheckedSettings):
    """What is measured, on what, and where the numbers go."""

    model: Path = setting(Path("runs/tiny/prompter/model"), help="folder of the prompt writer")
    blind: Path | None = setting(
        Path("runs/tiny/prompter_blind/model"), help="one that was trained blind, as a control"
    )
    data: Path = setting(Path("data/scenes/prompter_eval"), help="folder of shards of held-out scenes")
    out: Path = setting(Path("benchmarks/results/prompter.json"), help="numbers; .txt and .png beside it")
    scenes: int = setting(768, low=2, help="scenes that are looked at")
    most: int = setting(5, low=1, help="most masks of one image")
    seed: int = setting(0, help="of the choice of masks")
    batch: int = setting(64, low=1, help="questions that go through the model together")


def verdicts(cases: Sequence[Case], answers: Sequence[Sequence[str]]) -> list[Verdict]:
    """One verdict per mask."""
    found = []
    for case, told in zip(cases, answers, strict=True):
        for number, (text, name) in enumerate(zip(told, case.hidden, strict=True)):
            mates = case.mates[number]
            words = text.split()
            best = predictive(mates, COLOUR_WORDS).max(), predictive(case.shapes, SHAPE_WORDS).max()
            law = best_guess(mates, COLOUR_WORDS), best_guess(case.shapes, SHAPE_WORDS)
            found.append(
                Verdict(
                    scene=case.scene,
                    last=number == len(case.hidden) - 1,
                    mates=len(mates),
                    shapes=len(case.shapes),
                    colour=name.colour in words,
                    shape=name.shape in words,
                    root=name.shape in text,
                    ceiling_colour=float(best[0]),
                    ceiling_shape=float(best[1]),
                    law_colour=law[0] == name.colour,
                    law_shape=law[1] == name.shape,
                )
            )
    return found


def write(
    writer: PromptWriter, cases: Sequence[Case], images: Sequence[np.ndarray], batch: int
) -> list[list[str]]:
    """One caption per mask of each case, read from images that need not be its own."""
    return writer.write(images, [case.masks for case in cases], batch=batch)


def run(config: EvaluatePrompter) -> dict[str, object]:
    """How often does the small prompt writer name what a mask hides? Beside the best possible."""
    refuse_training_scenes(config.data)
    sets = open_sets(config.data, config.data / f"cache-{config.scenes}", config.scenes)
    writer = PromptWriter.load(config.model, device="cpu", dtype="fp32")
    blind = None if config.blind is None else PromptWriter.load(config.blind, device="cpu", dtype="fp32")
    found: dict[str, dict[str, list[Verdict]]] = {}
    for task, most in (("1mask", 1), ("multimask", config.most)):
        drawn = [make_case(sets, scene, most, config.seed) for scene in range(config.scenes)]
        cases = [case for case in drawn if case is not None]
        images = [case.image_u8 for case in cases]
        others = images[len(images) // 2 :] + images[: len(images) // 2]
        answers = {
            "prompter": write(writer, cases, images, config.batch),
            "another image": write(writer, cases, others, config.batch),
            "box alone": box_answers(sets, cases, most),
            "law": [bayes_optimal_answers(case) for case in cases],
        }
        if blind is not None:
            answers["trained blind"] = write(blind, cases, images, config.batch)
        found[task] = {reader: verdicts(cases, told) for reader, told in answers.items()}
        if task == "multimask":
            drawing = sheet(cases, answers["prompter"])
    result = {"settings": to_plain(config), "weights": hash_folder(config.model), **report(found)}
    write_all_atomic(
        {
            config.out: (json.dumps(result, indent=1) + "\n").encode(),
            config.out.with_suffix(".txt"): (table(result) + "\n").encode(),
            config.out.with_suffix(".png"): drawing,
        }
    )
    log.info("%s", table(result))
    return result


def sheet(cases: Sequence[Case], answers: Sequence[Sequence[str]], count: int = 10) -> bytes:
    """PNG: masks with what was written, and the true image; images with few and many masks in turn."""
    some = sorted(range(len(cases)), key=lambda row: (_rank(cases, row), len(cases[row].hidden)))[:count]
    images, labels = [], []
    for row in some:
        case = cases[row]
        colors = list(MASKS[: len(case.hidden)][::-1])
        images.append([paint_masks(case.image_u8, case.masks, colors), case.image_u8])
        lines = [
            f"{color}: {told}" + ("" if told == caption(name) else f" (true: {name.text})")
            for color, told, name in zip(colors, answers[row], case.hidden, strict=True)
        ]
        labels.append("; ".join(lines))
    drawn = grid(images, ["masks and what is written", "true image"], labels, cell=224)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _rank(cases: Sequence[Case], row: int) -> int:
    """How many cases with as many masks came before."""
    return sum(len(case.hidden) == len(cases[row].hidden) for case in cases[:row])


build_app = single_app(command(EvaluatePrompter, run))

if __name__ == "__main__":
    run_module(build_app)
