"""List the frames of every UVO video, as the loader reads them.

    python -m datasets.uvo_process UVO_sparse_train_video_with_interpolation.json OUT.json

The result maps the id of a video to the names of its frames: {"1": ["a/0.jpg", "a/1.jpg"]}.
"""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from datasets.sources.coco import json_entry, records_by_id
from ldm.files import read_json
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app


def process(
    annotations: Annotated[Path, typer.Argument(help="video annotations of UVO", metavar="VIDEO_JSON")],
    out: Annotated[Path, typer.Argument(help="JSON file to write", metavar="OUT_JSON")],
) -> None:
    """Write the frames of every UVO video as one JSON object."""
    videos = records_by_id(read_json(annotations), "videos", annotations)
    frames = {key: json_entry(video, "file_names", annotations, list) for key, video in videos.items()}
    write_result({out: (json.dumps(frames) + "\n").encode()})
    counts = len(frames), sum(map(len, frames.values()))
    logging.getLogger(__name__).info("%d videos, %d frames: %s", *counts, out)


build_app = single_app(process)

if __name__ == "__main__":
    run_module(build_app)
