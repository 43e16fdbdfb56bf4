"""Evaluation of a locator: its greedy answer beside controls, with 95 % bootstrap intervals.

The headline is the network's single greedy answer: no re-ranking, no anchor boxes. On rendered scenes all
rules are decided exactly (measures.py), on a dataset file those of the sentence. Controls: docs/locator.md.
"""

import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.relations import Place
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import read_shard, render_shards
from ldm.files import json_bytes
from ldm.images import encode_png, read_image
from ldm.metrics.intervals import mean_interval
from ldm.result import write_result
from ldm.settings.config import to_plain
from ldm.sheet import grid
from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.draw import draw_candidates
from llava_bifrost.evaluate.measures import LocatorCase, Measures, format_table, measure_answer
from llava_bifrost.evaluate.points import GREEDY, SHUFFLED, evaluate_points, greedy_answers, read_points
from llava_bifrost.language.answer import Candidate, satisfies
from llava_bifrost.language.instruction import PHRASES, make_instruction
from llava_bifrost.locator import Locator, load_locator
from llava_bifrost.settings import LocatorEvaluation
from llava_bifrost.worlds import questions
from llava_bifrost.worlds.world import SHAPE_NAMES, world_of

log = logging.getLogger(__name__)

FREE = "greedy answer, unconstrained"
IMAGE_FREE, CONSTANT = "trained blind", "one constant answer"
CEILING, DISTRACTOR_BLIND = "another right answer", "third objects overlooked"
WITHOUT_MODEL = ((CEILING, False), (DISTRACTOR_BLIND, True))  # whether objects without a name are left out
RANKED, BEST = "best of {} by predicted geometry", "best of {} by the truth"
ROUNDS = 6  # of proposals for another right answer, each twice as many as the one before; chosen
REFERENCE = (16, 16)  # the reference views are not needed
SHOWN = 96  # cases from which the image sheet is drawn
CELL, ROW = 300, 4  # pixels, images in a row of the sheet


def evaluate_locator(config: LocatorEvaluation) -> dict[str, Any]:
    """Does the answer of a locator satisfy the sentence? Beside controls; writes JSON, table and sheet."""
    where = config.device, config.dtype, config.load_in
    locator = load_locator(config.model, *where)
    if config.dataset is not None and (records := read_points(config.dataset)):
        return evaluate_points(config, locator, records[: config.scenes])
    blind = load_locator(config.blind, *where) if config.blind else None
    cases = locator_cases(config)
    result: dict[str, Any] = {"settings": to_plain(config), "place": {}, "replace": {}}
    texts, rng = [], np.random.default_rng(config.seed)
    cells: list[np.ndarray] = []
    labels: list[str] = []
    for kind, title in (("place", "place something new"), ("replace", "find a named solid (Replace)")):
        chosen = [case for case in cases if case.request.replace == (kind == "replace")]
        if not chosen:
            continue
        images = [case.image_u8 for case in chosen]
        asked = [make_instruction(case.request) for case in chosen]
        other = np.roll(np.arange(len(chosen)), len(chosen) // 2)  # no image stays with its question
        answers = {GREEDY: greedy_answers(locator, asked, images, config.batch)}
        answers[SHUFFLED] = greedy_answers(locator, asked, [images[i] for i in other], config.batch)
        answers[FREE] = greedy_answers(locator, asked, images, config.batch, constrained=False)
        if blind is not None:
            answers[IMAGE_FREE] = greedy_answers(blind, asked, images, config.batch)
        # The constant answer is the median of the right ones: the best that one answer for all can do.
        x0, y0, x1, y1 = map(float, np.median([case.ground_truth.box01_xyxy for case in chosen], axis=0))
        constant = Place.of((x0, y0, x1, y1), float(np.median([case.ground_truth.d for case in chosen])))
        answers[CONSTANT] = [constant] * len(chosen)
        rows = {name: list(map(measure_answer, chosen, given)) for name, given in answers.items()}
        if kind == "place":
            pairs = zip(rows[GREEDY], rows[SHUFFLED], strict=True)
            result["gap_to_another_image"] = mean_interval([a["valid"] - b["valid"] for a, b in pairs])
            rows |= place_rows(locator, chosen, config)
        for name, measures in rows.items():
            keys = dict.fromkeys(key for measure in measures for key in measure)
            result[kind][name] = {
                key: mean_interval([measure[key] for measure in measures if key in measure]) for key in keys
            }
        texts += [format_table(title, result[kind]), ""]
        if cells:
            continue
        # Of the first kind eight answers that are right and four that are wrong, drawn with the anchors.
        right = [bool(row.get("valid", row["iou"] > 0.5)) for row in rows[GREEDY][:SHOWN]]
        good, bad = (np.flatnonzero(np.array(right) == value) for value in (True, False))
        for i in (*rng.permutation(good)[:8], *rng.permutation(bad)[:4]):
            case, answer = chosen[i], answers[GREEDY][i]
            anchors = {name: case.anchors[name] for name in case.request.anchors}
            candidates = [] if answer is None else [Candidate(answer, 0.0, "")]
            cells.append(draw_candidates(case.image_u8, candidates, anchors))
            labels.append(("right: " if right[i] else "WRONG: ") + make_instruction(case.request))
    strips = [grid([cells[i : i + ROW]], labels[i : i + ROW], cell=CELL) for i in range(0, len(cells), ROW)]
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    text, sheet = "\n".join(texts), encode_png(np.concatenate(padded))
    out = config.out
    files = {out: json_bytes(result), out.with_suffix(".txt"): text.encode(), out.with_suffix(".png"): sheet}
    write_result(files, config.overwrite)
    log.info("%s", text)
    return result


def locator_cases(config: LocatorEvaluation) -> list[LocatorCase]:
    """Records of the dataset file, or a Place and a Replace question per held-out scene, rendered if missing.

    Every other scene is asked about as it is, the rest without their removed solid.
    """
    cases: list[LocatorCase] = []
    if (path := config.dataset) is not None:
        for record in read_records(path)[: config.scenes]:
            if record.request is None or not set(record.request.anchors) <= record.anchors.keys():
                raise ValueError(f"{path}: record {record.id} lacks its request or the places of its "
                                 "anchors; build it with llava_bifrost.build_dataset")  # fmt: skip
            image_u8 = read_image(record.image).rgb_u8
            cases.append(LocatorCase(record.id, image_u8, record.request, record.location, record.anchors))
        return cases
    first, count = config.first_scene, -(-config.scenes // 256) * 256
    folder = config.data / f"from-{first}" if first else config.data  # a folder holds one range of scenes
    store = StoreSettings(out=folder, count=count, first_seed=first, split="eval", reference_size=REFERENCE)
    for path in render_shards(store):
        shard = read_shard(path)
        for i, fact in enumerate(shard.facts):
            if len(cases) >= 2 * config.scenes:
                return cases
            world, image = world_of(fact, store), shard.image_u8[i]
            if i % 2:
                world, image = world.without(fact.removed), shard.without_u8[i]
            anchors = {world.solids.names[j]: world.place(j) for j in world.anchors}
            rng = np.random.default_rng((config.seed, fact.seed))
            placing = questions.place_questions(world, rng, 1)
            for question in placing + questions.replace_questions(world, rng, 1):
                request, answer = question.request, question.answer
                cases.append(LocatorCase(str(world.seed), image, request, answer, anchors, world))
    return cases


def place_rows(locator: Locator, cases: list[LocatorCase], config: LocatorEvaluation) -> dict[str, list]:
    """Further rows of Place questions: of several answers the first after ranking and the best.

    In rendered scenes also other right answers, once from a world that holds nothing but the named objects
    and furniture. Cases for which none is found are left out.
    """
    rows: dict[str, list[Measures]] = defaultdict(list)
    if config.candidates > 1:
        for case in tqdm(cases[: config.ranked], desc="ranking", unit="question"):
            text = make_instruction(case.request)
            places: list[Place | None] = [None]  # also for a sentence with an unknown word
            with suppress(ValueError):
                found = locator.locate(case.image_u8, text, config.candidates, config.seed)
                places = [candidate.location for candidate in found]
            measures = [measure_answer(case, place) for place in places]
            best = max(measures, key=lambda measure: (measure["valid"], measure["iou"]))
            rows[RANKED.format(config.candidates)].append(measures[0])
            rows[BEST.format(config.candidates)].append(best)
    for (name, ignores), (index, case) in product(WITHOUT_MODEL, enumerate(cases)):
        world, request, rng = case.world, case.request, np.random.default_rng((config.seed, index))
        if world is None:
            continue
        if ignores:
            named = np.isin(np.array(world.solids.names), request.anchors)
            world = replace(world, present=world.present & (named | ~world.solids.movable))
        columns = {world.solids.names[solid]: column for column, solid in enumerate(world.anchors)}
        if not set(request.anchors) <= columns.keys():
            continue
        known = {anchor: world.place(world.anchors[columns[anchor]]) for anchor in request.anchors}
        clauses = [(PHRASES[phrase], tuple(columns[anchor] for anchor in anchors))
                   for phrase, anchors in request.clauses]  # fmt: skip
        shape = SHAPE_NAMES.index(request.target.split()[-1])
        for attempt in range(ROUNDS):
            objects = questions.standing_places(world, rng, questions.PROPOSALS * 2**attempt, shape)
            if not len(objects.d):
                continue
            pool = questions.Pool(world, objects)
            chosen = pool.best(rng, clauses, np.ones(len(objects.d), bool))
            if chosen is not None and all(satisfies(pool.answer(chosen), request, known).values()):
                rows[name].append(measure_answer(case, pool.answer(chosen)))
                break
    return rows
