"""Questions from rendered scenes, exact; on full views also about new objects (worlds/questions.py)."""

from collections.abc import Sequence

import numpy as np

from datasets.scenes.store import SCENES_PER_SHARD, Shard, read_facts, read_options, read_shard
from datasets.sources.readers import folder
from datasets.sources.rendered import shard_files
from ldm.settings.config import to_plain
from llava_bifrost.build_dataset.questions import choose_facts, true_facts, word_request
from llava_bifrost.build_dataset.records import Built, Sample, rounded_place
from llava_bifrost.language.answer import satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.settings import ScenesBuild
from llava_bifrost.worlds.questions import place_questions
from llava_bifrost.worlds.world import world_of

TRIES = 4  # per question: the same sentence is not asked twice; chosen
SCENE_NAME = "{:014d}"  # of the item and its images; sorts like the seeds
DECISIVE = ("questions", "replace", "placements", "visible", "area", "relations")


class SceneSource:
    """Scenes in chunks that are built within a second and divide their files."""

    chunk = 16

    def __init__(self, settings: ScenesBuild) -> None:
        self.settings = settings
        self.files = shard_files(folder(settings.scenes, "scenes"))
        facts = [read_facts(path) for path in self.files]
        short = [path for path, scenes in zip(self.files[:-1], facts, strict=False)
                 if len(scenes) != SCENES_PER_SHARD]  # fmt: skip
        if short:
            raise ValueError(f"{short[0]} holds fewer than {SCENES_PER_SHARD} scenes; render the folder anew")
        self.options = read_options(self.files[0])
        if settings.placements and self.options.window != "full":
            raise ValueError(f"placements: {settings.scenes} shows parts of scenes; set placements to 0")
        self.names = [SCENE_NAME.format(fact.seed) for scenes in facts for fact in scenes]
        plain, seeds = to_plain(settings), [scenes[0].seed for scenes in facts]
        self.recipe = {"source": "scenes", "seeds": seeds, **{key: plain[key] for key in DECISIVE}}

    def prepare(self, indices: Sequence[int]) -> Shard:
        number, start = divmod(indices[0], SCENES_PER_SHARD)
        return read_shard(self.files[number], slice(start, start + len(indices)))

    def finish(self, prepared: Shard) -> list[Built]:
        """Place questions about the removed solids and new ones, Replace questions on the whole scenes."""
        settings, items = self.settings, []
        scenes = zip(prepared.facts, prepared.image_u8, prepared.without_u8, strict=True)
        for fact, image_u8, without_u8 in scenes:
            rng, name = np.random.default_rng((settings.seed, fact.seed)), SCENE_NAME.format(fact.seed)
            named = [index for index, visible in enumerate(fact.visible)
                     if visible >= settings.visible and fact.area[index] >= settings.area]  # fmt: skip
            solids = {index: rounded_place(box, *fact.depths[index])  # those that the image shows
                      for index, box in enumerate(fact.boxes01) if box[2]}  # fmt: skip
            anchors = {fact.names[index]: solids[index] for index in named if index != fact.removed}
            known: dict[str, frozenset[str]] = {}
            for anchor in anchors:
                pair = (fact.removed, fact.names.index(anchor))
                words = {word for a, word, b in fact.relations if (a, b) == pair}
                known[anchor] = frozenset(words | ({"above"} if "on" in words else set()))
            facts = true_facts([solids[fact.removed]], anchors, settings.relations, known)
            requests: dict[Request, None] = {}  # different ones, in their order
            for _ in range(TRIES * settings.questions if facts else 0):
                if len(requests) == settings.questions:
                    break
                chosen = choose_facts(facts, settings.relations.most, rng)
                requests[word_request(fact.names[fact.removed], chosen, rng)] = None
            asked = [(str(count), request, solids[fact.removed]) for count, request in enumerate(requests)]
            free = [index for index in named if fact.movable[index]]
            for count, index in enumerate(map(int, rng.permutation(free)[: settings.replace])):
                request = Request(fact.names[index], replace=True)
                asked.append((f"r{count}", request, solids[index]))
            if settings.placements:
                world = world_of(fact, self.options).without(fact.removed)
                rng = np.random.default_rng((settings.seed, fact.seed, 1))
                new = enumerate(place_questions(world, rng, settings.placements))
                asked += [(f"n{count}", question.request, question.answer) for count, question in new]
            samples, shown = [], {fact.names[index]: place for index, place in solids.items()}
            for suffix, request, where in asked:
                places = {anchor: shown[anchor] for anchor in request.anchors}
                if not all(satisfies(where, request, places).values()):  # also to the digits that are stored
                    continue
                kind, rgb_u8 = ("", image_u8) if request.replace else ("_without", without_u8)
                image = f"{name}{kind}.png"
                samples.append(Sample(f"{name}-{suffix}", image, rgb_u8, request, where, places, "scenes"))
            dropped = [] if requests else ["no relation: no solid that is seen is related"]
            items.append(Built(name, samples, dropped))
        return items
