"""Training data of the locator: questions about places, from photographs or rendered scenes.

    python -m llava_bifrost.build_dataset coco --images val2017 --annotations instances_val2017.json --out DIR
    python -m llava_bifrost.build_dataset scenes --scenes data/scenes/views_train --out DIR
    python -m llava_bifrost.build_dataset merge --out DIR          after --shard i/n on several machines

The same command again continues an interrupted run and ends with the same files. Records: records.py.
"""

import typer

from ldm.settings.cli import command, new_app, run_module
from llava_bifrost.build_dataset.coco import CocoBuild, build_coco
from llava_bifrost.build_dataset.files import MergeShardsSettings, merge_shards
from llava_bifrost.build_dataset.scenes import ScenesBuild, build_scenes


def build_app() -> typer.Typer:
    """The verbs of `python -m llava_bifrost.build_dataset`."""
    app = new_app("Training data of the locator.")
    app.command("coco")(command(CocoBuild, build_coco))
    app.command("scenes")(command(ScenesBuild, build_scenes))
    app.command("merge")(command(MergeShardsSettings, merge_shards))
    return app


if __name__ == "__main__":
    run_module(build_app)
