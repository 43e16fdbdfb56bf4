"""What the painting data start from: the authors' annotation files, and the images of their table.

    python -m inpainting.data.downloader fetch-annotations
    python -m inpainting.data.downloader download-and-save-images-wikiart-v2 -o data/mm_inp_dataset/images

Both continue where they stopped.
"""

import typer

from inpainting.data.steps.downloads import DownloadSettings, fetch_images
from inpainting.data.steps.fetch import FetchSettings, fetch_annotations
from ldm.settings.cli import command, new_app, run_module


def build_app() -> typer.Typer:
    app = new_app("Fetch annotations and images.")
    app.command("fetch-annotations")(command(FetchSettings, fetch_annotations))
    app.command("download-and-save-images-wikiart-v2")(command(DownloadSettings, fetch_images))
    return app


if __name__ == "__main__":
    run_module(build_app)
