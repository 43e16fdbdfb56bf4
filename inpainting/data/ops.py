"""From images and annotations to the painting data: the published steps one by one, or all with `build`.

Every step keeps its journal (stamp_STEP.jsonl) in the folder that it fills. It begins with what the step
depends on, so `build` skips a step that is up to date, and a changed input makes it and later ones run again.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from inpainting.data.batches import AnnotateSettings, CaptionSettings, LomoeSettings
from inpainting.data.paintings import GET, RAW_CAPTIONS
from inpainting.data.steps import texts
from inpainting.data.steps.regions import RegionSettings, make_entities, make_masks
from inpainting.data.steps.split import MODES, SplitSettings, split_images
from ldm.journal import Journal
from ldm.locks import alone
from ldm.settings.choices import FLOAT_TYPES
from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting
from ldm.settings.later import later

log = logging.getLogger(__name__)

annotate_images = later("inpainting.data.steps.describe:annotate_images")
caption_masks = later("inpainting.data.steps.describe:caption_masks")


@dataclass(frozen=True)
class BuildSettings(CheckedSettings):
    """Where everything is; the defaults are the published paths."""

    image_dir: Path = setting(Path("data/mm_inp_dataset/images"), help="folder of images, split or not")
    annotations_path: Path = setting(Path("data/annotations.json"), help="descriptions with boxes (Kosmos-2)")
    captions_path: Path = setting(Path("data/llava.json"), help="captions of the objects (LLaVA)")
    split_df_path: Path | None = setting(
        Path("data/wikiart_images.csv"), help="table of file_name and split; none: a random split"
    )
    out_dir: Path = setting(Path("data/mm_inp_dataset"), help="gets images, masks and entities")
    annotator_id: str = setting("", help="Kosmos-2, folder or hub name: makes a missing annotations file")
    model_id: str = setting("", help="LLaVA-NeXT, folder or hub name: makes a missing captions file")
    batch_size: int = setting(8, low=1, help="images that a model sees at once")
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the models' arithmetic")
    roots: str = setting("auto", choices=texts.METHODS, help="what finds noun roots")
    mode: str = setting("copy", choices=MODES, help="how images come into the folders of their split")
    val_size: int = setting(5000, low=1, help="validation images of a random split")
    test_size: int = setting(5000, low=1, help="test images of a random split")
    workers: int = setting(0, low=0, help="threads; 0: one per core")


def build_paintings(settings: BuildSettings) -> None:
    """All steps; run again after an interruption or a change, and only what is needed is done."""
    images, annotations = settings.image_dir, settings.annotations_path
    batch, dtype = settings.batch_size, settings.dtype
    masks, entities = settings.out_dir / "masks", settings.out_dir / "entities"
    if settings.annotator_id and not annotations.is_file():
        annotate_images(AnnotateSettings(images, annotations, settings.annotator_id, batch, dtype=dtype))
    if not annotations.is_file():
        raise ValueError(f"{annotations} does not exist; {GET}; or make it with --annotator-id MODEL")
    regions = RegionSettings(annotations, image_dir=images, out_dir=masks, workers=settings.workers)
    journals: list[Journal | None] = [
        make_masks(regions, redo=False),
        make_entities(replace(regions, out_dir=entities), redo=False),
        texts.extract_roots(texts.RootSettings(entities, settings.roots), redo=False),
    ]
    captions = settings.captions_path
    if not captions.exists():
        if not settings.model_id:
            raise ValueError(f"{captions} does not exist; {GET}; or make it with --model-id MODEL")
        folder = settings.out_dir / "captions"
        caption_masks(CaptionSettings(entities, settings.model_id, batch, output_dir=folder, dtype=dtype))
        captions = folder / RAW_CAPTIONS
    table, sizes = settings.split_df_path, (settings.val_size, settings.test_size)
    split = SplitSettings(settings.out_dir / "images", masks, table, *sizes, **{settings.mode: True})
    journals += [
        texts.captions_to_folder(texts.FolderSettings(captions, entities), redo=False),
        texts.captions_to_annotations(texts.EntitySettings(entities), redo=False),
        split_images(split, images, redo=False),
    ]
    for journal in journals:
        if journal is not None and journal.left_out:
            log.warning("%d left out, reasons in %s", len(journal.left_out), journal.path)


def build_app() -> App:
    app = new_app("Make the painting data.")
    app.command("make-masks-dataset")(command(RegionSettings, make_masks))
    app.command("make-entities-dataset")(command(RegionSettings, make_entities))
    app.command("extract-noun-chunk-roots")(command(texts.RootSettings, texts.extract_roots))
    app.command("caption-masks")(command(CaptionSettings, caption_masks))
    app.command("llava-annotations-to-folder")(command(texts.FolderSettings, texts.captions_to_folder))
    cleaned = command(texts.EntitySettings, texts.captions_to_annotations)
    app.command("llava-annotations-to-entity-annotations")(cleaned)
    app.command("train-val-test-split")(command(SplitSettings, split_images))
    app.command("annotate-images")(command(AnnotateSettings, annotate_images))
    app.command("lomoe")(command(LomoeSettings, later("inpainting.data.steps.lomoe:build_lomoe")))
    app.command("build")(command(BuildSettings, alone(build_paintings, lambda settings: settings.out_dir)))
    return app


if __name__ == "__main__":
    run_module(build_app)
