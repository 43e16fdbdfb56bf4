"""Training data of the locator: questions about places, from photographs or rendered scenes.

    python -m llava_bifrost.build_dataset coco --images val2017 --annotations instances_val2017.json --out DIR
    python -m llava_bifrost.build_dataset scenes --scenes data/scenes/views_train --out DIR
    python -m llava_bifrost.build_dataset merge --out DIR          after --shard i/n on several machines

The same command again continues an interrupted run and ends with the same files. Records: build_records.py.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import check_settings, setting
from llava_bifrost.build_dataset.coco import CocoBuild, CocoSource
from llava_bifrost.build_dataset.files import DATASET, STATISTICS, OutputSettings, Source, build, merge
from llava_bifrost.build_dataset.records import table
from llava_bifrost.build_dataset.scenes import ScenesBuild, SceneSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeSettings:
    """Which data set is put together."""

    out: Path = setting(help="folder that the shards were built into")

    def __post_init__(self) -> None:
        check_settings(self)


def build_coco(settings: CocoBuild) -> None:
    """Questions from photographs with instance annotations, one object of each removed."""
    _build(CocoSource(settings), settings)


def build_scenes(settings: ScenesBuild) -> None:
    """Questions from rendered scenes, exact."""
    _build(SceneSource(settings), settings)


def _build(source: Source, settings: OutputSettings) -> None:
    start = time.perf_counter()
    built, report = build(source, settings)
    seconds = time.perf_counter() - start
    log.info("%d items in %.1f s, %.2f per second", built, seconds, built / max(seconds, 1e-9))
    if report is None:
        log.info(
            "shard %s is done; `python -m llava_bifrost.build_dataset merge --out %s` when all are",
            settings.shard,
            settings.out,
        )
    else:
        _tell(settings.out, report)


def merge_shards(settings: MergeSettings) -> None:
    """Put the shards of several machines together; refuses while some are missing."""
    _tell(settings.out, merge(settings.out))


def _tell(out: Path, report: dict[str, Any]) -> None:
    typer.echo(table(report))
    log.info("data set:   %s\nstatistics: %s", out / DATASET, out / STATISTICS)
    if not report["samples"]:
        log.warning("no item gave a sample; see `dropped` above for the reasons")


def build_app() -> typer.Typer:
    """The verbs of `python -m llava_bifrost.build_dataset`."""
    app = new_app("Training data of the locator.")
    app.command("coco")(command(CocoBuild, build_coco))
    app.command("scenes")(command(ScenesBuild, build_scenes))
    app.command("merge")(command(MergeSettings, merge_shards))
    return app


if __name__ == "__main__":
    run_module(build_app)
