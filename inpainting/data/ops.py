"""From images and annotations to the painting data: the published steps one by one, or all with `build`.

    python -m inpainting.data.ops build
    python -m inpainting.data.ops make-masks-dataset --annotations-path data/annotations.json \
        --image-dir data/mm_inp_dataset/images --out-dir data/mm_inp_dataset/masks

What cannot be used is left out, named, and listed with its reason in the step's journal (stamp_STEP.jsonl).
"""

from __future__ import annotations

import typer

from inpainting.data.steps.build import BuildSettings, build_paintings
from inpainting.data.steps.caption_masks import CaptionSettings, caption_masks
from inpainting.data.steps.captions import (
    EntitySettings,
    FolderSettings,
    captions_to_annotations,
    captions_to_folder,
)
from inpainting.data.steps.describe import AnnotateSettings, annotate_images
from inpainting.data.steps.regions import RegionSettings, make_entities, make_masks
from inpainting.data.steps.roots import RootSettings, extract_roots
from inpainting.data.steps.split import SplitSettings, split_images
from ldm.settings.cli import command, new_app, run_module


def build_app() -> typer.Typer:
    app = new_app("Make the painting data.")
    app.command("make-masks-dataset")(command(RegionSettings, make_masks))
    app.command("make-entities-dataset")(command(RegionSettings, make_entities))
    app.command("extract-noun-chunk-roots")(command(RootSettings, extract_roots))
    app.command("caption-masks")(command(CaptionSettings, caption_masks))
    app.command("llava-annotations-to-folder")(command(FolderSettings, captions_to_folder))
    app.command("llava-annotations-to-entity-annotations")(command(EntitySettings, captions_to_annotations))
    app.command("train-val-test-split")(command(SplitSettings, split_images))
    app.command("annotate-images")(command(AnnotateSettings, annotate_images))
    app.command("build")(command(BuildSettings, build_paintings))
    return app


if __name__ == "__main__":
    run_module(build_app)
