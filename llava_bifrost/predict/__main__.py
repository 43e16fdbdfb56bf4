"""Ask a locator where an object goes: an image and a sentence in, boxes and depths out.

python -m llava_bifrost.predict image --image F --instruction "Place the dog behind the sofa"
python -m llava_bifrost.predict jsonl --jobs JOBS.jsonl --out ANSWERS.jsonl
python -m llava_bifrost.predict anchors "sofa=0.1,0.4,0.6,0.9" --image F --out anchors.json
"""

from ldm.settings.cli import App, command, new_app, run_module
from llava_bifrost.settings import NamedBoxes, PredictImage, PredictJobs


def build_app() -> App:
    app = new_app("Where does an object go? Boxes and depths from an image and a sentence.")
    app.command("image")(command(PredictImage, "llava_bifrost.predict.run:predict_image"))
    app.command("jsonl")(command(PredictJobs, "llava_bifrost.predict.run:predict_jobs"))
    app.command("anchors")(command(NamedBoxes, "llava_bifrost.predict.run:write_anchors"))
    return app


if __name__ == "__main__":
    run_module(build_app)
