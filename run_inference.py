"""Compose images from the command line.

    python run_inference.py image --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
    python run_inference.py image --background room.png --object dog.png \\
        --instruction "Place the dog behind the sofa"
    python run_inference.py replay out.png
    python run_inference.py job scene.yaml --layers --out outputs/scene.png
    python run_inference.py edit "Move the lamp behind the sofa. Remove the chair." --background room.png \\
        --detector builtin
    python run_inference.py batch jobs.jsonl --out outputs/batch --shard 0/4
    python run_inference.py dreambooth --objects FOLDER --backgrounds FOLDER --out outputs/dreambooth
    python run_inference.py schema image

Defaults come from configs/inference.yaml; flags override them.  `--help` after a verb lists everything.
"""

from compose.batch_settings import BatchSettings, DreamBoothSettings
from compose.job import EditSettings, JobSettings
from compose.schema import print_schema
from compose.settings import DEFAULTS, CompositeSettings, ReplaySettings
from ldm.settings.cli import App, command, new_app, run_module


def build_app() -> App:
    app = new_app("Put objects into images: at a box, at a depth, behind what is nearer.")
    job, batch = "compose.layering:run_job", "compose.batch:batch"
    app.command("job")(command(JobSettings, job))
    edits = 'Edit an image by sentences: "Move the lamp behind the sofa. Remove the chair."\n\n'
    edits += "Writes an image that carries its recipe, and a JSON report beside it."
    app.command("edit", help=edits)(command(EditSettings, job))
    app.command("image")(command(CompositeSettings, "compose.commands:run_image", DEFAULTS))
    app.command("replay")(command(ReplaySettings, "compose.commands:replay"))
    app.command("batch")(command(BatchSettings, batch))
    pairs = "Compose every object of the DreamBooth test set into every background. Run again to continue."
    app.command("dreambooth", help=pairs)(command(DreamBoothSettings, batch))
    app.command("schema")(print_schema)
    return app


if __name__ == "__main__":
    run_module(build_app)
