"""How often the geometric placer's first answer is valid in held-out rendered scenes, measured in 3D.

    OMP_NUM_THREADS=1 python -m benchmarks.placer [--scenes 512] [--out FILE]

Questions and measures are those of llava_bifrost.evaluate. The placer is given the depth map, the places of
the objects and the object's aspect; a locator has to see all that, so the numbers are not comparable.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, write_results
from datasets.scenes.settings import StoreSettings
from ldm.settings.cli import run_module, single_app
from llava_bifrost.placement.placer import Item, NoPlace, place_object

if TYPE_CHECKING:
    from llava_bifrost.evaluate.measures import LocatorCase

FOLDER = Path("data/scenes/views_eval")
RULES = ("valid", "relations", "in_frame", "ground", "size", "free")


def cases(count: int) -> "Iterator[tuple[LocatorCase, np.ndarray]]":
    """A question about a held-out scene without its removed solid, all places in it known; its depth map."""
    from datasets.scenes.store import depth_01, read_shard, render_shards
    from llava_bifrost.evaluate.measures import LocatorCase
    from llava_bifrost.worlds.questions import place_questions
    from llava_bifrost.worlds.world import world_of

    settings = StoreSettings(out=FOLDER, count=-(-count // 256) * 256, split="eval", reference_size=(16, 16))
    shards = map(read_shard, render_shards(settings))
    scenes = ((shard, *numbered) for shard in shards for numbered in enumerate(shard.facts))
    for shard, index, fact in islice(scenes, count):
        world = world_of(fact, settings).without(fact.removed)
        seen = np.flatnonzero(world.present & (world.solids.area > 0))
        every = {world.solids.names[i]: world.place(int(i)) for i in seen}
        for asked in place_questions(world, np.random.default_rng((0, fact.seed)), 1):
            shown = str(fact.seed), shard.without_u8[index]
            case = LocatorCase(*shown, asked.request, asked.answer, every, world)
            yield case, depth_01(shard.without_depth_u16[index])


def measure_placer(
    scenes: Annotated[int, typer.Option(help="held-out scenes; rendered if missing", metavar="INT")] = 512,
    out: Out = RESULTS / "placer.json",
) -> None:
    """Measure the geometric placer's first answers: fractions of questions by rule."""
    from llava_bifrost.evaluate.measures import measure_answer

    rows: dict[str, list[dict[str, float]]] = {"all things known": [], "named things known": []}
    seconds = 0.0
    for case, depth in cases(scenes):
        # The cut-out gives the object's aspect; here that of the true solid.
        x0, y0, x1, y1 = case.ground_truth.box01_xyxy
        item = Item((x1 - x0) / (y1 - y0))
        named = {name: case.anchors[name] for name in case.request.anchors}
        for row, known in zip(rows, (case.anchors, named), strict=True):
            start = time.perf_counter()
            try:
                location = place_object(case.request, known, depth, item=item)[0].location
            except NoPlace:
                rows[row].append({"answered": 0.0})
                continue
            finally:
                seconds += time.perf_counter() - start
            judged = measure_answer(case, location)
            rows[row].append({"answered": 1.0, **{rule: judged[rule] for rule in RULES}})
    table: dict[str, Any] = {"scenes": scenes}
    for row, questions in rows.items():  # a question without an answer breaks every rule
        table[row] = {"questions": float(len(questions))}
        for rule in ("answered", *RULES):
            table[row][rule] = round(float(np.mean([each.get(rule, 0.0) for each in questions])), 3)
    table["seconds"] = {"per question": round(seconds / max(1, 2 * len(rows["all things known"])), 3)}
    write_results(out, table)


build_app = single_app(measure_placer)

if __name__ == "__main__":
    run_module(build_app)
