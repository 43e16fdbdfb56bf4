"""Evaluation of a locator: its greedy answer beside controls, with 95 % bootstrap intervals.

The headline is the network's single greedy answer: no re-ranking, no anchor boxes. On rendered scenes all
rules are decided exactly (measures.py), on a dataset file those of the sentence. Controls: docs/locator.md.
On files with masks: does the point of an answer, the middle of its box's lower edge, lie where it may?

{"image": "a.jpg", "sentence": "Place the cup on the table", "mask": "a_mask.png"}   a line of JSONL
Placement/question.json with rgb_path, prompt, mask_path                    RefSpatial-Bench
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.relations import Place
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import read_options, read_shard, render_shards
from ldm.files import json_bytes, named_failure, numbered_lines, read_json
from ldm.images import encode_png, read_image, read_mask
from ldm.journal import parse_line
from ldm.metrics.numbers import format_estimate, mean_interval
from ldm.result import write_result
from ldm.settings.config import to_plain
from ldm.sheet import grid
from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.evaluate.measures import LocatorCase, Measures, format_table, measure_answer
from llava_bifrost.language.answer import AnswerError, Candidate, draw_candidates, satisfies
from llava_bifrost.language.instruction import PHRASES, make_instruction
from llava_bifrost.locator import Locator, load_locator
from llava_bifrost.placement.search import at
from llava_bifrost.settings import LocatorEvaluation
from llava_bifrost.worlds import questions
from llava_bifrost.worlds.world import SHAPE_NAMES, world_of

log = logging.getLogger(__name__)

GREEDY, SHUFFLED = "greedy answer", "about another image"
MASK = ("mask", "mask_path")
NAMES = {"image": ("image", "rgb_path"), "sentence": ("sentence", "instruction", "prompt"), "mask": MASK}
Answers = list[Place | None]
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
            values = defaultdict[str, list[float]](list)
            for key, value in (pair for measure in measures for pair in measure.items()):
                values[key].append(value)
            result[kind][name] = {key: mean_interval(each) for key, each in values.items()}
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
    if (there := folder / "shard-00000.safetensors").is_file():  # such as the control set, see docs/scenes.md
        store = replace(store, **vars(read_options(there)))
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


def read_points(path: Path) -> list[dict[str, Any]]:
    """Records; none of a file without masks. ValueError names the line, key or file that is wrong."""
    file = path / "question.json" if path.is_dir() else path
    rows: list[Any] = []
    for number, line in numbered_lines(file) if file.suffix == ".jsonl" else ():
        with named_failure(f"{file}: line {number}", ValueError):
            rows.append(parse_line(line))
    rows = rows or read_json(file, list)
    if file.suffix != ".jsonl" and not any(isinstance(row, dict) and set(MASK) & row.keys() for row in rows):
        return []
    records = []
    for number, row in enumerate(rows, 1):
        record: dict = {key: next(filter(None, map(row.get, names)), None) for key, names in NAMES.items()}
        if lacking := [key for key, value in record.items() if value is None]:
            raise ValueError(f"{file}: record {number} lacks {', '.join(lacking)}")
        record |= {key: file.parent / record[key] for key in ("image", "mask")}
        if missing := [key for key in ("image", "mask") if not record[key].is_file()]:
            raise ValueError(f"{file}: record {number}: there is no file {record[missing[0]]}")
        records.append(record)
    return records


def greedy_answers(
    locator: Locator, texts: Sequence[str], images: Sequence[np.ndarray], batch: int, constrained: bool = True
) -> Answers:
    """The greedy answer to each sentence about the image beside it; None where it cannot be read or asked."""
    answers: Answers = [None] * len(texts)
    questions: dict[int, str] = {}
    for number, text in enumerate(texts):
        try:
            questions[number] = locator.question(text, locator.understand(text))
        except ValueError as error:  # an unknown word, or a sentence that is not understood
            log.warning("counted as wrong: %s: %s", text, error)
    numbers = list(questions)
    for start in tqdm(range(0, len(numbers), batch), desc="asking", unit="batch"):
        part = numbers[start : start + batch]
        here, asked = [images[number] for number in part], [questions[number] for number in part]
        try:
            if constrained:
                found: Answers = [candidate.location for candidate in locator.answer(here, asked)]
            else:
                found = [place for _, place in locator.answer_freely(here, asked, batch)]
        except AnswerError:  # one of them lies in the padding
            alone = ([texts[number]] for number in part) if len(part) > 1 else ()
            singles = zip(alone, here, strict=False)
            found = [greedy_answers(locator, text, [image], 1)[0] for text, image in singles] or [None]
        for number, place in zip(part, found, strict=True):
            answers[number] = place
    return answers


def evaluate_points(config: LocatorEvaluation, locator: Locator, records: list[dict]) -> dict[str, Any]:
    """The fraction of answers whose point lies in the mask, beside the same about another image."""
    images = [read_image(record["image"]).rgb_u8 for record in records]
    pairs = zip(records, images, strict=True)
    masks = [read_mask(record["mask"], size=image.shape[:2]) for record, image in pairs]
    texts, half = [record["sentence"] for record in records], len(records) // 2
    table = {}
    for name, shown in ((GREEDY, images), (SHUFFLED, images[half:] + images[:half])):
        places = greedy_answers(locator, texts, shown, config.batch)
        hits = [float(stands_in(place, mask)) for place, mask in zip(places, masks, strict=True)]
        answered = [float(place is not None) for place in places]
        table[name] = {"in_mask": mean_interval(hits), "answered": mean_interval(answered)}
    # What a point anywhere in the image would reach.
    table["any point"] = {"in_mask": mean_interval([float(mask.mean()) for mask in masks])}
    lines = [f"{'point in mask':44}{len(records):>6}"]
    lines += [f"{name:44}{format_estimate(row['in_mask'], '.3f'):>30}" for name, row in table.items()]
    text, result = "\n".join(lines), {"settings": to_plain(config), "points": table}
    files = {config.out: json_bytes(result), config.out.with_suffix(".txt"): text.encode()}
    write_result(files, config.overwrite)
    log.info("%s", text)
    return result


def stands_in(place: Place | None, mask: np.ndarray) -> bool:
    """Whether the middle of a box's lower edge lies in a mask (h, w) bool."""
    return place is not None and bool(at(mask, np.float64(place.middle), np.float64(place.y1)))
