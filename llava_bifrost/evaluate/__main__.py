"""Measure a locator: does what it answers satisfy the sentence, in this image?

    python -m llava_bifrost.evaluate --scenes 1024 --out benchmarks/results/locator.json
    python -m llava_bifrost.evaluate --dataset outputs/location/data.json --out outputs/locator.json

The headline is the network's single greedy answer: no re-ranking, no anchor boxes. On rendered scenes all
rules are decided exactly (evaluate_judge.py); on a dataset file those of the instruction. Beside it stand
controls: the same questions about another image, one constant answer, a network trained blind; and,
on scenes, another right answer (the ceiling of every distance to one right answer) and the places of who
overlooks third objects. 95 % bootstrap intervals.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm import tqdm

from ldm.files import write_all_atomic
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import check_settings, setting, to_plain
from llava_bifrost.evaluate.cases import dataset_cases, scene_cases
from llava_bifrost.evaluate.measures import Case, Measures, failed, judge
from llava_bifrost.evaluate.report import gap, sheet, show, show_published, summarised
from llava_bifrost.language.answer import AnswerError, Location, make_instruction
from llava_bifrost.locator import Locator, load_locator
from llava_bifrost.worlds.controls import another_place, careless_place

log = logging.getLogger(__name__)

GREEDY, SHUFFLED, IMAGE_FREE, CONSTANT = (
    "greedy answer",
    "about another image",
    "trained blind",
    "one constant answer",
)
CEILING, DISTRACTOR_BLIND = "another right answer", "third objects overlooked"
RANKED, BEST = "best of {} by predicted geometry", "best of {} by the truth"


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured and where the numbers go."""

    model: Path = setting(Path("assets/tiny/locator"), help="folder of the locator")
    out: Path = setting(Path("outputs/locator.json"), help="numbers; .txt and .png are written beside it")
    dataset: Path | None = setting(None, help="dataset file of build_dataset; without it rendered scenes")
    scenes: int = setting(1024, help="held-out scenes, or records of the dataset", low=1)
    data: Path = setting(
        Path("data/scenes/views_eval"), help="folder of held-out scenes; rendered if missing"
    )
    blind: Path | None = setting(None, help="folder of a locator that was trained without seeing images")
    candidates: int = setting(0, help="also measure re-ranking and best of this many; 0: not", low=0)
    ranked: int = setting(128, help="scenes on which that is done", low=1)
    batch: int = setting(64, help="questions answered together", low=1)
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    seed: int = setting(0, help="of the questions and controls", low=0)

    def __post_init__(self) -> None:
        check_settings(self)


Answers = list[Location | None]


def ask(locator: Locator, cases: Sequence[Case], images: Sequence[np.ndarray], batch: int) -> Answers:
    """The greedy answer to each case about the image beside it; None where it cannot be read."""
    found: Answers = []
    for start in tqdm(range(0, len(cases), batch), desc="asking", unit="batch"):
        here = slice(start, start + batch)
        texts = [make_instruction(case.request) for case in cases[here]]
        try:
            found += [one.location for one in locator.locate_many(images[here], texts)]
        except AnswerError:
            found += [_one(locator, image, text) for image, text in zip(images[here], texts, strict=True)]
    return found


def _one(locator: Locator, image: np.ndarray, text: str) -> Location | None:
    try:
        return locator.locate(image, text)[0].location
    except AnswerError:
        return None


def judged(cases: Sequence[Case], answers: Answers) -> list[Measures]:
    """Measures of each answer; an unreadable one counts as wrong in everything."""
    pairs = zip(cases, answers, strict=True)
    return [failed(case) if answer is None else judge(case, answer) for case, answer in pairs]


def controls(
    locator: Locator, cases: Sequence[Case], config: EvaluateSettings, blind: Locator | None
) -> dict[str, list[Measures]]:
    """Rows of measures: the greedy answer and what it is to be compared with."""
    images = [case.image_u8 for case in cases]
    other = np.roll(np.arange(len(cases)), len(cases) // 2)  # no image stays with its question
    answers = {
        GREEDY: ask(locator, cases, images, config.batch),
        SHUFFLED: ask(locator, cases, [images[i] for i in other], config.batch),
    }
    if blind is not None:
        answers[IMAGE_FREE] = ask(blind, cases, images, config.batch)
    answers[CONSTANT] = [constant(cases)] * len(cases)
    return {name: judged(cases, found) for name, found in answers.items()}


def constant(cases: Sequence[Case]) -> Location:
    """The median of the right answers: the best that one answer for all can do."""
    box = np.median([case.truth.box01_xyxy for case in cases], axis=0)
    x0, y0, x1, y1 = (float(value) for value in box)
    return Location((x0, y0, x1, y1), float(np.median([case.truth.depth for case in cases])))


def without_model(cases: Sequence[Case], seed: int) -> dict[str, list[Measures]]:
    """Rows of answers that follow from the world alone. Cases for which none is found are left out."""
    rows: dict[str, list[Measures]] = {}
    makers: dict[str, Callable[..., Location | None]] = {
        CEILING: another_place,
        DISTRACTOR_BLIND: careless_place,
    }
    for name, make in makers.items():
        found = [
            make(case.world, case.request, np.random.default_rng((seed, i))) for i, case in enumerate(cases)
        ]
        rows[name] = [judge(case, one) for case, one in zip(cases, found, strict=True) if one is not None]
    return rows


def re_ranked(locator: Locator, cases: Sequence[Case], config: EvaluateSettings) -> dict[str, list[Measures]]:
    """Of several answers the first after ranking with anchors that the locator finds itself, and the best."""
    first, best = [], []
    for case in tqdm(cases[: config.ranked], desc="ranking", unit="question"):
        text = make_instruction(case.request)
        found = locator.locate(case.image_u8, text, config.candidates, config.seed)
        measures = [judge(case, one.location) for one in found]
        first.append(measures[0])
        best.append(max(measures, key=lambda one: (one["valid"], one["iou"])))
    return {RANKED.format(config.candidates): first, BEST.format(config.candidates): best}


def run(config: EvaluateSettings) -> dict[str, Any]:
    """Measure and write JSON, table and image sheet; returns what the JSON holds."""
    locator = load_locator(config.model, config.device)
    blind = load_locator(config.blind, config.device) if config.blind else None
    scenes = config.dataset is None
    if config.dataset is None:
        cases = scene_cases(config.data, config.scenes, config.seed)
    else:
        cases = dataset_cases(config.dataset, config.scenes)
    result: dict[str, Any] = {"settings": to_plain(config), "place": {}, "replace": {}}
    texts, drawn = [], b""
    for kind in ("place", "replace"):
        chosen = [case for case in cases if case.kind == kind]
        if not chosen:
            continue
        rows = controls(locator, chosen, config, blind)
        if kind == "place":
            result["gap_to_another_image"] = gap(rows[GREEDY], rows[SHUFFLED])
            if config.candidates > 1:
                rows |= re_ranked(locator, chosen, config)
            if scenes:
                rows |= without_model(chosen, config.seed)
        result[kind] = summarised(rows)
        title = "place something new" if kind == "place" else "find a named solid (Replace)"
        texts += [show(title, result[kind]), show_published(result[kind]), ""]
        if not drawn:
            answers = ask(locator, chosen[:96], [case.image_u8 for case in chosen[:96]], config.batch)
            drawn = sheet(chosen[:96], answers, judged(chosen[:96], answers), config.seed)
    write_all_atomic({
        config.out: (json.dumps(result, indent=1) + "\n").encode(),
        config.out.with_suffix(".txt"): ("\n".join(texts)).encode(),
        config.out.with_suffix(".png"): drawn,
    })  # fmt: skip
    log.info("%s", "\n".join(texts))
    return result


def build_app() -> typer.Typer:
    return single_app(command(EvaluateSettings, run))


if __name__ == "__main__":
    run_module(build_app)
