"""Look at a source before training on it.

    python run_dataset_debug.py --source scenes --n 8 --out outputs/scenes.png
    python run_dataset_debug.py --source mose --n 16 --out outputs/mose.png
    python run_dataset_debug.py --source mose --validate --out outputs/mose.json

The first two write a contact sheet and a table of rejections, the third checks all files and writes a report
and a list of the sound items, which `indexes.mose=FILE` makes the loader use. A check that was interrupted
goes on with the same command.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from datasets.base import ExampleSource
from datasets.inputs import PairOptions
from datasets.scenes.store import StoreSettings, render_shards
from datasets.sources.image_source import ImageSource
from datasets.sources.inspection import RejectionStats, accepted_samples, validate
from datasets.sources.registry import SOURCES, DatasetsConfig, open_source
from datasets.sources.rendered import RenderedScenes
from ldm.files import json_bytes, write_all_atomic
from ldm.images import from_pm1, write_png
from ldm.settings.cli import run_module, single_app
from ldm.settings.config import load_config, to_plain
from ldm.settings.schema import nearest
from ldm.sheet import grid

log = logging.getLogger(__name__)

CONFIG = Path("configs/datasets.yaml")
# hint: what the model reads; collage: the cut-out in its place
COLUMNS = ("reference", "target", "hint", "mask", "depth", "collage")
MOTION = ("still", "video", "new view")


def write_sheet(
    source: ExampleSource, name: str, options: PairOptions, n: int, seed: int, out: Path
) -> RejectionStats:
    """Draw n examples, write their contact sheet, return the rejection statistics."""
    stats = RejectionStats(name)
    rows, labels = [], []
    for sample in accepted_samples(source, stats, options, n, seed):
        pair, params = sample.pair, sample.params
        rows.append(
            [
                from_pm1(pair.reference_01 * 2 - 1),
                from_pm1(pair.target_pm1),
                from_pm1(pair.detail_pm1[:3]),
                pair.edit_mask[0].numpy(),
                pair.depth_01[0].numpy(),
                from_pm1(pair.paste_pm1),
            ]
        )
        motion = MOTION[sample.dynamics]
        labels.append(f"{sample.name} {motion} mask {params.mask_level} crop {params.crop_ratio:.1f}")
    write_png(out, grid(rows, COLUMNS, labels, cell=160))
    return stats


def write_report(source: ExampleSource, name: str, out: Path, settings: dict[str, Any]) -> str:
    """Check every file of a source, write report and index, return what to say.

    settings: those of the source; an interrupted check with the same ones goes on where it stopped.
    """
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"--validate is for sources of files; {name} is rendered and checked when it is read"
        )
    journal = out.with_name(f"{out.stem}_unfinished.jsonl")
    report = validate(source, name, journal, settings)
    index = out.with_name(f"{out.stem}_index.json")
    counted = {"accepted": report.objects.accepted, **report.objects.rejected}
    items = {"items": len(source), "sound": len(report.sound)}
    body = {"source": name, **items, "objects": counted, "problems": report.problems}
    listed = json.dumps({"source": name, "items": report.sound}) + "\n"
    write_all_atomic({out: json_bytes(body), index: listed.encode()})
    journal.unlink()
    summary = f"{len(report.sound)} of {len(source)} items are sound, {len(report.problems)} are not"
    return f"{report.objects.table()}\n{summary}\nreport: {out}\nindex:  {index} (indexes.{name}={index})"


def rendered(folder: Path, count: int, seed: int, side: int) -> ExampleSource:
    """Fresh rendered scenes, for a look that needs no data."""
    size = (min(side, 192), min(side, 192))
    scenes: dict[str, Any] = {"count": count, "first_seed": seed, "size": size, "reference_size": size}
    render_shards(StoreSettings(out=folder, window="object", **scenes))
    return RenderedScenes(folder)


def debug(
    source: Annotated[str, typer.Option(help=f"one of {', '.join(SOURCES)}")],
    out: Annotated[Path, typer.Option(help="PNG of the sheet, JSON of the report", metavar="FILE")],
    config: Annotated[Path, typer.Option(help="where the data are", metavar="FILE")] = CONFIG,
    n: Annotated[int, typer.Option(help="examples on the sheet", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="seed of the draws", min=0)] = 0,
    size: Annotated[int, typer.Option(help="side of the model's image, pixels", min=16)] = 256,
    validate: Annotated[bool, typer.Option("--validate", help="check all files instead")] = False,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings of the sources")] = None,
) -> None:
    """Contact sheet and rejections of a source, or a check of all its files."""
    if source not in SOURCES:
        raise ValueError(f"--source: {nearest(source, SOURCES, 'source')}")
    expected = ".json" if validate else ".png"
    if out.suffix != expected:
        raise ValueError(f"--out must end in {expected}, got {out}")
    settings = load_config(DatasetsConfig, config, overrides or [])
    if validate:
        plain = to_plain(getattr(settings, source))
        log.info("%s", write_report(open_source(settings, source), source, out, plain))
        return
    options = PairOptions(size=(size, size))
    absent = source == "scenes" and not (settings.scenes and settings.scenes.folder.is_dir())
    with TemporaryDirectory() as folder:
        opened = rendered(Path(folder), n, seed, size) if absent else open_source(settings, source)
        stats = write_sheet(opened, source, options, n, seed, out)
    log.info("%s\nsheet: %s", stats.table(), out)


build_app = single_app(debug)

if __name__ == "__main__":
    run_module(build_app)
