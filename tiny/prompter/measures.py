"""What the small prompt writer's evaluation asks and counts, and the answers that it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from datasets.geometry import Box
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.prompts import paint_masks
from ldm.files import hash_folder
from ldm.settings.config import to_plain
from ldm.sheet import grid
from tiny.prompter.evaluate import PrompterEvaluation
from tiny.prompter.sets import DrawnMasks, Sets, best_guess, draw_masks, open_sets, predictive
from tiny.report import Record, alternating, cell, scene_interval, scene_mean, table_lines, write_evaluation
from tiny.settings import MASK_COLORS
from tiny.world import COLOUR_WORDS, KINDS, SHAPE_WORDS, Name, box_masks, caption_of, refuse_training_scenes

ON_SHEET = 10  # images
DRAWS, NEIGHBOURS = 8, 40  # masks per scene, and how many of the nearest vote; chosen
BY_CHANCE = {"colour": 1 / len(COLOUR_WORDS), "shape": 1 / len(SHAPE_WORDS)}
PRIOR = {**BY_CHANCE, "both": BY_CHANCE["colour"] * BY_CHANCE["shape"], "root": BY_CHANCE["shape"]}
VISIBLE = ("colour by visible mates", "shape by visible solids")


@dataclass(frozen=True, eq=False)
class PromptCase:
    scene: int
    image_u8: np.ndarray  # (h, w, 3)
    drawn: DrawnMasks
    hidden: tuple[Name, ...]
    mates: tuple[tuple[str, ...], ...]  # visible colours in the half of each mask
    shapes: tuple[str, ...]  # all visible shapes
    guesses: tuple[Name, ...]  # of a reader that recognises every visible solid

    @property
    def masks(self) -> list[np.ndarray]:
        """(h, w) bool, in the order of the question."""
        return list(box_masks(self.drawn.boxes, self.image_u8.shape[:2]))


def prompt_case(sets: Sets, scene: int, most: int, seed: int) -> PromptCase | None:
    """A scene with masks; None if no solid of it can be masked."""
    drawn = draw_masks(sets, scene, most, np.random.default_rng((seed, most, scene)))
    if not drawn.solids:
        return None
    side = sets.side[scene]
    colours = [COLOUR_WORDS[number] if number >= 0 else "" for number in sets.colour[scene]]
    shapes = [KINDS[number] for number in sets.kind[scene]]
    seen = [solid for solid, colour in enumerate(colours) if colour and solid not in drawn.solids]
    mates = [tuple(colours[k] for k in seen if side[k] == side[solid]) for solid in drawn.solids]
    seen_shapes = tuple(shapes[solid] for solid in seen)
    shape = best_guess(seen_shapes, SHAPE_WORDS)
    return PromptCase(
        scene, np.array(sets.images_u8[scene]), drawn,
        hidden=tuple(Name("", colours[solid], shapes[solid]) for solid in drawn.solids),
        mates=tuple(mates), shapes=seen_shapes,
        guesses=tuple(Name("", best_guess(colours, COLOUR_WORDS), shape) for colours in mates))  # fmt: skip


def box_answers(sets: Sets, cases: Sequence[PromptCase], most: int) -> list[list[str]]:
    """Captions by vote of the most similar boxes of other scenes: what the boxes alone give away."""
    known, rows = [], []
    for scene, draw in product(range(len(sets.kind)), range(DRAWS)):
        drawn = draw_masks(sets, scene, most, np.random.default_rng((7, draw, scene)))
        for solid, box in zip(drawn.solids, drawn.boxes, strict=True):
            known.append(_described(box))
            rows.append((scene, sets.colour[scene, solid], sets.kind[scene, solid]))
    scenes, colours, shapes = np.array(rows).T
    descriptions, scale = np.array(known), np.std(known, 0)

    def answer(case: PromptCase, box: Box) -> str:
        distance = np.square((descriptions - _described(box)) / scale).sum(1) + 1e9 * (scenes == case.scene)
        near = np.argpartition(distance, min(NEIGHBOURS, len(distance) - 1))[:NEIGHBOURS]
        votes = (colours, COLOUR_WORDS), (shapes, SHAPE_WORDS)
        colour, shape = (words[int(np.bincount(given[near]).argmax())] for given, words in votes)
        return caption_of(Name("", colour, shape))

    return [[answer(case, box) for box in case.drawn.boxes] for case in cases]


def _described(box: Box) -> np.ndarray:
    """(6,) sides, their ratio, place."""
    w, h = box[2] - box[0], box[3] - box[1]
    return np.array([w, h, 32 * np.log(w / h), (box[0] + box[2]) / 4, box[1] / 2, box[3] / 2])


def caption_results(cases: Sequence[PromptCase], answers: Sequence[Sequence[str]]) -> list[Record]:
    """What is right about the caption of each mask, under the names of PRIOR; what is visible beside it.

    root: the published rule, the noun's root anywhere in the text. bayes_*: whether the Bayes-optimal guess
    is right; ceiling_*: how often it is, given what is visible. mates: visible solids in the same half;
    shapes: all visible solids
    """
    results = []
    for case, captions in zip(cases, answers, strict=True):
        for text, name, guess, mates in zip(captions, case.hidden, case.guesses, case.mates, strict=True):
            colour, shape = (word in text.split() for word in (name.colour, name.shape))
            most_colour, most_shape = (float(predictive(seen, words).max()) for seen, words in
                                       ((mates, COLOUR_WORDS), (case.shapes, SHAPE_WORDS)))  # fmt: skip
            results.append({
                "scene": case.scene, "last": name is case.hidden[-1], "mates": len(mates),
                "shapes": len(case.shapes), "colour": colour, "shape": shape, "both": colour and shape,
                "root": name.shape in text, "ceiling_colour": most_colour, "ceiling_shape": most_shape,
                "ceiling_both": most_colour * most_shape, "ceiling_root": most_shape,
                "bayes_colour": guess.colour == name.colour, "bayes_shape": guess.shape == name.shape,
            })  # fmt: skip
    return results


def task_numbers(by_reader: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Accuracies of every reader, ceiling, prior, gap, and the model's accuracy by what is visible."""
    mine = by_reader["prompter"]
    rows: dict[str, Any] = {}
    for reader, results in by_reader.items():
        rows[reader] = {measure: scene_mean(results, measure) for measure in PRIOR}
    rows["ceiling"] = {measure: scene_mean(mine, f"ceiling_{measure}") for measure in PRIOR}
    rows["prior"] = {measure: {"mean": round(prior, 4)} for measure, prior in PRIOR.items()}
    gap = {}
    for measure, prior in PRIOR.items():

        def way(sums: np.ndarray, prior: float = prior) -> float:  # from the prior to the ceiling
            return (sums[1] - prior * sums[0]) / (sums[2] - prior * sums[0])

        gap[measure] = scene_interval(mine, (measure, f"ceiling_{measure}"), way)
    by_visible: dict[str, dict[str, Any]] = {title: {} for title in VISIBLE}
    for title, key, measure in zip(VISIBLE, ("mates", "shapes"), ("colour", "shape"), strict=True):
        for count in sorted({result[key] for result in mine}):
            group = [result for result in mine if result[key] == count]
            ceiling = scene_mean(group, f"ceiling_{measure}")["mean"]
            numbers = {"masks": len(group), "model": scene_mean(group, measure), "ceiling": ceiling}
            by_visible[title][str(count)] = numbers
    wrong = {of: [row for row in mine if not row[f"bayes_{of}"]] for of in ("colour", "shape")}
    leak = {of: scene_mean(group, of) for of, group in wrong.items() if group}
    images = len({result["scene"] for result in mine})
    counts = {"masks": len(mine), "images": images, "accuracy": rows, "gap": gap}
    return {**counts, **by_visible, "right where Bayes-optimal is wrong": leak}


def evaluate_prompter(config: PrompterEvaluation) -> dict[str, object]:
    """How often does the small prompt writer name what a mask hides? Beside the best possible."""
    refuse_training_scenes(config.data, "tiny.prompter.scenes")
    sets = open_sets(config.data, config.data / f"cache-{config.scenes}", config.scenes)
    folders = {"prompter": config.model} | ({"trained blind": config.blind} if config.blind else {})
    writers = {name: PromptWriter.load(path, device="cpu", dtype="fp32") for name, path in folders.items()}
    results: dict[str, dict[str, list[Record]]] = {}
    for task, most in (("1mask", 1), ("multimask", config.most)):
        scenes = range(config.scenes)
        cases = [case for scene in scenes if (case := prompt_case(sets, scene, most, config.seed))]
        images, masks = [case.image_u8 for case in cases], [case.masks for case in cases]
        others = images[len(images) // 2 :] + images[: len(images) // 2]
        answers = {
            "prompter": writers["prompter"].write(images, masks, batch=config.batch),
            "another image": writers["prompter"].write(others, masks, batch=config.batch),
            "box alone": box_answers(sets, cases, most),
            "Bayes-optimal": [[caption_of(name) for name in case.guesses] for case in cases],
        }
        if "trained blind" in writers:
            answers["trained blind"] = writers["trained blind"].write(images, masks, batch=config.batch)
        results[task] = {reader: caption_results(cases, captions) for reader, captions in answers.items()}
    several = results["multimask"].items()
    results["multimask last"] = {reader: [row for row in rows if row["last"]] for reader, rows in several}
    tasks = {task: task_numbers(by_reader) for task, by_reader in results.items()}
    report = {"settings": to_plain(config), "weights": hash_folder(config.model), "tasks": tasks}
    text = []
    for task, numbers in tasks.items():
        text.append(f"{task}: {numbers['masks']} masks in {numbers['images']} images [95 % interval]")
        text += table_lines("", {**numbers["accuracy"], "gap": numbers["gap"]}, tuple(PRIOR), (18, 23))
        for name in VISIBLE:
            counts = [f"{n}: {row['model']['mean']:.3f} of {row['ceiling']:.3f} ({row['masks']})"
                      for n, row in numbers[name].items()]  # fmt: skip
            text.append(f"{name}: " + ", ".join(counts))
        leak = numbers["right where Bayes-optimal is wrong"].items()
        text += ["right where Bayes-optimal is wrong: " + ", ".join(f"{of} {cell(n)}" for of, n in leak), ""]
    # The sheet: several masks with what was written, and the true image; few and many masks in turn.
    cells, labels = [], []
    for row in alternating([len(case.hidden) for case in cases])[:ON_SHEET]:
        case = cases[row]
        colors = list(MASK_COLORS[: len(case.hidden)][::-1])
        cells.append([paint_masks(case.image_u8, case.masks, colors), case.image_u8])
        lines = []
        for color, said, solid in zip(colors, answers["prompter"][row], case.hidden, strict=True):
            true = "" if said == caption_of(solid) else f" (true: {solid.text})"
            lines.append(f"{color}: {said}{true}")
        labels.append("; ".join(lines))
    sheet_u8 = grid(cells, ["masks and what is written", "true image"], labels, cell=224)
    write_evaluation(config.out, report, text[:-1], sheet_u8)
    return report
