"""Write a source of training examples as tar shards, with the depth maps inside.

    python -m datasets.tars --source lvis --out data/tars/lvis
    python -m datasets.tars --source mose --draws 20 --out data/tars/mose mose.images=/data/mose/JPEGImages

`tars.lvis=data/tars/lvis` in a datasets file makes training read them. Run again to continue.
"""

import json
import logging
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from datasets.base import Rejected
from datasets.sources.image_source import ImageSource, SourceConfig
from datasets.sources.readers import ObjectView
from datasets.sources.registry import SOURCES, DatasetsConfig, open_source
from datasets.sources.tarred import DEPTH, RECORD, is_whole, shard_path
from ldm.cluster import Stream, spread
from ldm.files import same_file, write_atomic, written_whole
from ldm.locks import note_begun, taken
from ldm.settings.choices import Divided, shard_of
from ldm.settings.cli import command, run_module, single_app, takes_keys
from ldm.settings.config import load_config, setting, to_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TarSettings(Divided):
    source: str = setting(help="whose examples", choices=SOURCES)
    out: Path = setting(help="folder of the shards")
    config: Path = setting(Path("configs/datasets.yaml"), help="where the data are")
    items: int = setting(1000, low=1, help="items of the source in a shard")
    draws: int = setting(1, low=1, help="how often pairs of frames or views of an item are drawn")
    seed: int = setting(0, low=0, help="of these draws")
    overrides: tuple[str, ...] = setting((), aliases=("[KEY=VALUE]...",), help="settings of the sources")


def write_tars(settings: TarSettings) -> dict[str, Any]:
    """Write the examples of a source, with their depth maps, as tar shards; run again to continue."""
    config = load_config(DatasetsConfig, settings.config, settings.overrides)
    source, (index, count) = open_source(config, settings.source), shard_of(settings.shard)
    if not isinstance(source, ImageSource):
        raise ValueError(f"{settings.source}: rendered scenes are stored in shards already")
    record = {key: getattr(settings, key) for key in ("source", "items", "draws", "seed")}
    record |= {"files": to_plain(source.config), "shards": -(-len(source) // settings.items)}
    note_begun(settings.out / RECORD, record)

    def make() -> Stream:
        there: Any = open_source(config, settings.source) if settings.ray else source
        return partial(write_shards, there, settings)

    written, left_out = 0, list[str]()
    for examples, problems in spread(make, range(record["shards"])[index::count], settings.ray):
        written, left_out = written + examples, left_out + problems
        for problem in problems:
            log.warning("left out: %s", problem)
    log.info("%d examples written, %d items left out: %s", written, len(left_out), settings.out)
    return {"out": settings.out.as_posix(), "written": written, "left_out": left_out}


def write_shards(
    source: ImageSource, settings: TarSettings, shards: Iterable[int]
) -> Iterator[tuple[int, list[str]]]:
    """Write those that are not there; of each how many examples, and why other items give none."""
    for shard in taken(shards, lambda n: is_whole(settings.out, n), lambda n: shard_path(settings.out, n)):
        path, places, problems = shard_path(settings.out, shard), [0], list[str]()
        with written_whole(path) as name, tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(len(source))[shard * settings.items : (shard + 1) * settings.items]:
                try:
                    files = example_files(source, number, settings)
                except (Rejected, ValueError, OSError) as error:
                    problems.append(f"{source.name(number)}: {error}")
                    continue
                for ending, data in files.items():
                    info = tarfile.TarInfo(f"{number:08d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
                places.append(tar.offset)
        np.save(index := BytesIO(), np.array(places))
        write_atomic(path.with_suffix(".npy"), index.getvalue())
        yield len(places) - 1, problems


def example_files(source: ImageSource, number: int, settings: TarSettings) -> dict[str, bytes]:
    """The files of an example by their ending; ValueError or Rejected where the item can give none."""
    config, item = source.config, source.items[number]
    if type(config).draws is SourceConfig.draws:
        pairs = [(view, view) for view in config.views(item)]
    else:
        rngs = [np.random.default_rng((settings.seed, number, draw)) for draw in range(settings.draws)]
        pairs = [pair for rng in rngs for pair in config.draws(item, rng)]
    images, views = dict[Path, str](), dict[str, int]()  # image -> ending; JSON of a view -> its number
    files = {"json": b""}  # the first

    @cache
    def place(view: ObjectView) -> int:
        name = images.setdefault(view.image, f"{len(images)}{view.image.suffix.lower()}")
        if name not in files:
            files[name] = same_file(view.image).read_bytes()
            if view.tree is not None and view.tree.depth is not None:
                files[f"{Path(name).stem}.{DEPTH}"] = view.depth_path.read_bytes()
        mask: Any
        try:
            mask = run_lengths.encode(np.asfortranarray(view.mask(), np.uint8))
            mask["counts"] = mask["counts"].decode()
        except Rejected as error:
            mask = str(error)
        entry = json.dumps({"image": name, "mask": mask, "target": view.tree is not None})
        return views.setdefault(entry, len(views))

    numbers = [(place(first), place(second)) for first, second in pairs]
    if not numbers:
        raise Rejected("no object: it has no view")
    facts = {"name": source.name(number), "views": [json.loads(view) for view in views], "pairs": numbers}
    return {**files, "json": json.dumps(facts).encode()}


build_app = single_app(command(TarSettings, write_tars), takes_keys(DatasetsConfig))

if __name__ == "__main__":
    run_module(build_app)
