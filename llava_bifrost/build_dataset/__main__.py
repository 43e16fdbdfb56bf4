"""Training data of the locator: questions about places, from photographs or rendered scenes.

python -m llava_bifrost.build_dataset coco --images val2017 --annotations instances_val2017.json --out DIR
python -m llava_bifrost.build_dataset scenes --scenes data/scenes/views_train --out DIR
python -m llava_bifrost.build_dataset merge --out DIR          after --shard i/n on several machines
"""

from functools import partial

from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.later import later
from llava_bifrost.settings import CocoBuild, MergeShardsSettings, ScenesBuild


def build_app() -> App:
    app = new_app("Training data of the locator.")
    build = later("llava_bifrost.build_dataset.files:build_questions")
    coco = later("llava_bifrost.build_dataset.coco:CocoSource")
    scenes = later("llava_bifrost.build_dataset.scenes:SceneSource")
    photographs = "Questions from photographs with instance annotations, one object of each removed."
    app.command("coco", help=photographs)(command(CocoBuild, partial(build, coco)))
    rendered = "Questions from rendered scenes, exact."
    app.command("scenes", help=rendered)(command(ScenesBuild, partial(build, scenes)))
    merge = later("llava_bifrost.build_dataset.files:merge_shards")
    app.command("merge")(command(MergeShardsSettings, merge))
    return app


if __name__ == "__main__":
    run_module(build_app)
