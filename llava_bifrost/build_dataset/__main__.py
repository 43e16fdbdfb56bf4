"""Training data of the locator: questions about places, from photographs or rendered scenes.

    python -m llava_bifrost.build_dataset coco --images val2017 --annotations instances_val2017.json --out DIR
    python -m llava_bifrost.build_dataset scenes --scenes data/scenes/views_train --out DIR
    python -m llava_bifrost.build_dataset merge --out DIR          after --shard i/n on several machines

The same command again continues an interrupted run and ends with the same files. Records: records.py.
"""

from functools import partial

import typer

from ldm.settings.cli import command, new_app, run_module
from llava_bifrost.build_dataset.coco import CocoBuild, CocoSource
from llava_bifrost.build_dataset.files import MergeShardsSettings, build_questions, merge_shards
from llava_bifrost.build_dataset.scenes import ScenesBuild, SceneSource


def build_app() -> typer.Typer:
    """The verbs of `python -m llava_bifrost.build_dataset`."""
    app = new_app("Training data of the locator.")
    photographs = "Questions from photographs with instance annotations, one object of each removed."
    app.command("coco", help=photographs)(command(CocoBuild, partial(build_questions, CocoSource)))
    rendered = "Questions from rendered scenes, exact."
    app.command("scenes", help=rendered)(command(ScenesBuild, partial(build_questions, SceneSource)))
    app.command("merge")(command(MergeShardsSettings, merge_shards))
    return app


if __name__ == "__main__":
    run_module(build_app)
