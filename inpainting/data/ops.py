"""From images and annotations to the painting data: the published steps one by one, or all with `build`.

    python -m inpainting.data.ops build
    python -m inpainting.data.ops make-masks-dataset --annotations-path data/annotations.json \
        --image-dir data/mm_inp_dataset/images --out-dir data/mm_inp_dataset/masks

What cannot be used is left out, named, and listed with its reason in the step's journal (stamp_STEP.jsonl).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from inpainting.data.steps.annotate import annotate_images
from inpainting.data.steps.build import BuildSettings, build
from inpainting.data.steps.caption_masks import Captioning, caption_masks
from inpainting.data.steps.captions import captions_to_annotations, captions_to_folder
from inpainting.data.steps.describe import PRECISIONS
from inpainting.data.steps.regions import make_entities, make_masks
from inpainting.data.steps.roots import METHODS, extract_roots
from inpainting.data.steps.split import split_images
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import check_settings, setting
from ldm.shards import shard_of


@dataclass(frozen=True)
class RegionSettings:
    """Annotations and images -> a folder."""

    annotations_path: Path = setting(help="JSON file of descriptions with boxes")
    image_dir: Path = setting(help="folder of images, split or not")
    out_dir: Path = setting(help="folder that gets one folder per image")
    workers: int = setting(0, low=0, help="threads; 0: one per core")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class RootSettings:
    """Entities -> noun roots."""

    entities_dir: Path = setting(help="folder of entities")
    method: str = setting("auto", choices=METHODS, help="spaCy's model, the rule, or the first that works")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Which share of the work this process does; `--shard i/n` says both in one."""

    num_processes: int = setting(1, low=1, help="number of processes that share the work")
    process_id: int = setting(0, low=0, help="which of them this is")
    shard: str = setting("", help="i/n instead of the two")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.process_id >= self.num_processes:
            raise ValueError(
                f"--process-id must be below --num-processes ({self.num_processes}), got {self.process_id}"
            )

    @property
    def share(self) -> tuple[int, int]:
        """(index, count)"""
        return shard_of(self.shard) if self.shard else (self.process_id, self.num_processes)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(ProcessSettings):
    """Object crops -> raw captions by LLaVA-NeXT."""

    entities_dir: Path = setting(help="folder of entities")
    model_id: str = setting(help="LLaVA-NeXT, folder or hub name")
    batch_size: int = setting(help="crops at once", low=1)
    max_new_tokens: int = setting(40, low=1, help="longest caption")
    output_dir: Path = setting(Path("."), help="folder of the journal, backup_P_final.json and llava.json")
    precision: str = setting("auto", choices=PRECISIONS, help="of the model's weights")
    resume: bool = setting(True, help="continue earlier work, also backups of the published command")


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings(ProcessSettings):
    """Images -> descriptions with boxes by Kosmos-2."""

    image_dir: Path = setting(help="folder of images, split or not")
    out: Path = setting(Path("data/annotations.json"), help="JSON file to write")
    model_id: str = setting("microsoft/kosmos-2-patch14-224", help="Kosmos-2, folder or hub name")
    batch_size: int = setting(8, low=1, help="images at once")
    max_new_tokens: int = setting(128, low=1, help="longest description")


@dataclass(frozen=True)
class FolderSettings:
    """Raw captions -> one llava.json per image."""

    annotations_path: Path = setting(help="llava.json, a backup, or a folder of backups")
    out_dir: Path = setting(help="folder of entities")


@dataclass(frozen=True)
class EntitySettings:
    """llava.json -> `caption` of annotations.json."""

    entities_dir: Path = setting(help="folder of entities")


@dataclass(frozen=True)
class SplitSettings:
    """Images -> images/{train,val,test,unannotated}. Copies unless told otherwise."""

    image_dir: Path = setting(help="folder of images; gets a folder per split")
    masks_dir: Path = setting(help="folder of masks; an image without any is unannotated")
    split_df_path: Path | None = setting(None, help="table of file_name and split; default: a random split")
    val_size: int = setting(5000, low=1, help="validation images of a random split")
    test_size: int = setting(5000, low=1, help="test images of a random split")
    copy: bool = setting(False, help="copy the images (what happens when none of the three is given)")
    move: bool = setting(False, help="move the images, as published")
    symlink: bool = setting(False, help="link to the images")
    dry_run: bool = setting(False, help="only say how many images would go where")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.copy + self.move + self.symlink > 1:
            raise ValueError("give one of --copy, --move and --symlink")

    @property
    def mode(self) -> str:
        return "move" if self.move else "symlink" if self.symlink else "copy"


def make_masks_dataset(settings: RegionSettings) -> None:
    """One mask per entity: the union of its boxes that cover 1 % to 65 % of the image."""
    make_masks(settings.annotations_path, settings.image_dir, settings.out_dir, settings.workers)


def make_entities_dataset(settings: RegionSettings) -> None:
    """One crop or collage per entity, and annotations.json; what later steps wrote into it stays."""
    make_entities(settings.annotations_path, settings.image_dir, settings.out_dir, settings.workers)


def extract_noun_chunk_roots(settings: RootSettings) -> None:
    """Add the root of each concept's first noun chunk to annotations.json."""
    extract_roots(settings.entities_dir, settings.method)


def caption_masks_command(settings: CaptionSettings) -> None:
    """Caption every crop with LLaVA-NeXT; run again to continue."""
    how = Captioning(settings.model_id, settings.batch_size, settings.max_new_tokens, settings.precision)
    index, count = settings.share
    caption_masks(settings.entities_dir, settings.output_dir, how, index, count, settings.resume)


def annotate_images_command(settings: AnnotateSettings) -> None:
    """Describe every image and box what is described, with Kosmos-2; run again to continue."""
    index, count = settings.share
    annotate_images(
        settings.image_dir,
        settings.out,
        model_id=settings.model_id,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        process=index,
        processes=count,
    )


def llava_annotations_to_folder(settings: FolderSettings) -> None:
    """Write the captions of each image into its folder."""
    captions_to_folder(settings.annotations_path, settings.out_dir)


def llava_annotations_to_entity_annotations(settings: EntitySettings) -> None:
    """Clean the captions and add them to annotations.json."""
    captions_to_annotations(settings.entities_dir)


def train_val_test_split(settings: SplitSettings) -> None:
    """Put the images into the folders of their split."""
    split_images(
        settings.image_dir,
        settings.masks_dir,
        settings.split_df_path,
        mode=settings.mode,
        val=settings.val_size,
        test=settings.test_size,
        dry_run=settings.dry_run,
    )


def build_app() -> typer.Typer:
    app = new_app("Make the painting data.")
    app.command("make-masks-dataset")(command(RegionSettings, make_masks_dataset))
    app.command("make-entities-dataset")(command(RegionSettings, make_entities_dataset))
    app.command("extract-noun-chunk-roots")(command(RootSettings, extract_noun_chunk_roots))
    app.command("caption-masks")(command(CaptionSettings, caption_masks_command))
    app.command("llava-annotations-to-folder")(command(FolderSettings, llava_annotations_to_folder))
    app.command("llava-annotations-to-entity-annotations")(
        command(EntitySettings, llava_annotations_to_entity_annotations)
    )
    app.command("train-val-test-split")(command(SplitSettings, train_val_test_split))
    app.command("annotate-images")(command(AnnotateSettings, annotate_images_command))
    app.command("build")(command(BuildSettings, build))
    return app


if __name__ == "__main__":
    run_module(build_app)
