"""Ask a locator where an object goes: an image and a sentence in, boxes and depths out.

    python -m llava_bifrost.predict image --image F --instruction "Place the dog behind the sofa"
    python -m llava_bifrost.predict jsonl --jobs JOBS.jsonl --out ANSWERS.jsonl

Answers always have a valid form. With `--candidates K` several places are proposed, ranked by geometry and
drawn on the image.
"""

import typer

from ldm.settings.cli import command, new_app, run_module
from llava_bifrost.predict.run import PredictImage, PredictJobs, predict_image, predict_jobs


def build_app() -> typer.Typer:
    """The command line."""
    app = new_app("Where does an object go? Boxes and depths from an image and a sentence.")
    app.command("image")(command(PredictImage, predict_image))
    app.command("jsonl")(command(PredictJobs, predict_jobs))
    return app


if __name__ == "__main__":
    run_module(build_app)
