"""Look at a source before training on it.

    python run_dataset_debug.py --source scenes --n 8 --out outputs/scenes.png
    python run_dataset_debug.py --source mose --n 16 --out outputs/mose.png
    python run_dataset_debug.py --source mose --validate --out outputs/mose.json

The first two write a contact sheet and a table of rejections, the third checks all files and writes a report
and a list of the sound items, which `indexes.mose=FILE` makes the loader use. A check that was interrupted
goes on with the same command.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import ldm as ldm  # first, as Ctrl-C is quiet from there on
from datasets.base import ExampleSource
from datasets.inputs import PairOptions
from datasets.scenes.settings import StoreSettings
from datasets.sources.image_source import ImageSource
from datasets.sources.registry import SOURCES, DatasetsConfig, open_source
from ldm.files import json_bytes
from ldm.images import encode_png, from_pm1
from ldm.locks import one_writer
from ldm.result import overwrite_setting, write_result
from ldm.settings.cli import command, run_module, single_app, takes_keys
from ldm.settings.config import CheckedSettings, load_config, setting, to_plain
from ldm.settings.schema import nearest
from ldm.sheet import grid
from ldm.temporary import own_folder

log = logging.getLogger(__name__)

CONFIG = Path("configs/datasets.yaml")
# hint: what the model reads; collage: the cut-out in its place
COLUMNS = ("reference", "target", "hint", "mask", "depth", "collage")
MOTION = ("still", "video", "new view")


@dataclass(frozen=True, kw_only=True)
class DebugSettings(CheckedSettings):
    source: str = setting(help=f"one of {', '.join(SOURCES)}")
    out: Path = setting(help="PNG of the sheet, JSON of the report")
    config: Path = setting(CONFIG, help="where the data are")
    n: int = setting(8, low=1, help="examples on the sheet")
    seed: int = setting(0, low=0, help="seed of the draws")
    size: int = setting(256, low=16, help="side of the model's image, pixels")
    validate: bool = setting(False, help="check all files instead")
    overrides: tuple[str, ...] = setting(
        (), aliases=("[KEY=VALUE]...",), help="key=value settings of the sources"
    )
    overwrite: bool = overwrite_setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in SOURCES:
            raise ValueError(f"--source: {nearest(self.source, SOURCES, 'source')}")
        expected = ".json" if self.validate else ".png"
        if self.out.suffix != expected:
            raise ValueError(f"--out must end in {expected}, got {self.out}")


def check_source(source: ExampleSource, config: DatasetsConfig, settings: DebugSettings) -> None:
    """Check every file of a source, write report and index; an interrupted check goes on where it stopped."""
    from datasets.sources.inspection import validate

    name, out = settings.source, settings.out
    if not isinstance(source, ImageSource):
        rest = f"{name} is rendered and checked when it is read"
        raise ValueError(f"--validate is for sources of files; {rest}")
    journal, index = out.with_name(f"{out.stem}_unfinished.jsonl"), out.with_name(f"{out.stem}_index.json")
    with one_writer(journal, inside=False):
        objects, problems = validate(source, name, journal, to_plain(getattr(config, name)))
    sound = [item for item, wrong in problems.items() if not wrong]
    unsound = {item: wrong for item, wrong in problems.items() if wrong}
    counted = {"accepted": objects.accepted, **objects.rejected}
    items = {"items": len(source), "sound": len(sound), "read_as_stored": objects.as_stored}
    body = {"source": name, **items, "objects": counted, "problems": unsound}
    listed = json.dumps({"source": name, "items": sound}) + "\n"
    write_result({out: json_bytes(body), index: listed.encode()}, settings.overwrite)
    journal.unlink()
    summary = f"{len(sound)} of {len(source)} items are sound, {len(unsound)} are not"
    files = f"report: {out}\nindex:  {index} (indexes.{name}={index})"
    log.info("%s\n%s\n%s", objects.table(), summary, files)


def debug(settings: DebugSettings) -> None:
    """Contact sheet and rejections of a source, or a check of all its files."""
    from datasets.scenes.store import render_shards
    from datasets.sources.inspection import RejectionStats, accepted_samples
    from datasets.sources.rendered import RenderedScenes

    name, config = settings.source, load_config(DatasetsConfig, settings.config, settings.overrides)
    if settings.validate:
        check_source(open_source(config, name), config, settings)
        return
    stats, options = RejectionStats(name), PairOptions(size=(settings.size, settings.size))
    rows, labels = [], []
    with own_folder("bifrost-scenes-") as folder:
        if name == "scenes" and not (config.scenes and config.scenes.folder.is_dir()):
            side, store = min(settings.size, 192), Path(folder)
            render_shards(StoreSettings(
                out=store, window="object", count=settings.n, first_seed=settings.seed, size=(side, side),
                reference_size=(side, side)))  # fmt: skip
            source: ExampleSource = RenderedScenes(store)
        else:
            source = open_source(config, name)
        for item, pair in accepted_samples(source, stats, options, settings.n, settings.seed):
            params = pair.geometry.params
            colours = (pair.reference_01 * 2 - 1, pair.target_pm1, pair.detail_pm1[:3], pair.paste_pm1)
            reference, target, hint, paste = map(from_pm1, colours)
            rows.append([reference, target, hint, pair.edit_mask[0].numpy(), pair.depth_01[0].numpy(), paste])
            motion = MOTION[source.dynamics]
            labels.append(f"{item} {motion} mask {params.mask_level} crop {params.crop_ratio:.1f}")
    write_result({settings.out: encode_png(grid(rows, COLUMNS, labels, cell=160))}, settings.overwrite)
    log.info("%s\nsheet: %s", stats.table(), settings.out)


build_app = single_app(command(DebugSettings, debug), takes_keys(DatasetsConfig))

if __name__ == "__main__":
    run_module(build_app)
