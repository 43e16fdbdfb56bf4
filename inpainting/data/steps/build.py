"""All steps from images and their annotations to the painting data; what is up to date is passed over.

Every step keeps its journal (stamp_STEP.jsonl) in the folder that it fills. The journal begins with what the
step depends on, so a changed input makes that step and those after it run again, and a kill loses one item.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from inpainting.data.paintings import GET, RAW_CAPTIONS
from inpainting.data.steps.annotate import annotate_images
from inpainting.data.steps.caption_masks import Captioning, caption_masks
from inpainting.data.steps.captions import captions_to_annotations, captions_to_folder
from inpainting.data.steps.regions import make_entities, make_masks
from inpainting.data.steps.roots import METHODS, extract_roots
from inpainting.data.steps.split import MODES, split_images
from ldm.journal import Journal
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSettings:
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
    roots: str = setting("auto", choices=METHODS, help="what finds noun roots")
    mode: str = setting("copy", choices=MODES, help="how images come into the folders of their split")
    val_size: int = setting(5000, low=1, help="validation images of a random split")
    test_size: int = setting(5000, low=1, help="test images of a random split")
    workers: int = setting(0, low=0, help="threads; 0: one per core")

    def __post_init__(self) -> None:
        check_settings(self)


def build(settings: BuildSettings) -> None:
    """All steps; run again after an interruption or a change, and only what is needed is done."""
    masks, entities = settings.out_dir / "masks", settings.out_dir / "entities"
    annotations = wanted_annotations(settings)
    journals: list[Journal | None] = [
        make_masks(annotations, settings.image_dir, masks, settings.workers, redo=False),
        make_entities(annotations, settings.image_dir, entities, settings.workers, redo=False),
        extract_roots(entities, settings.roots, redo=False),
    ]
    captions = wanted_captions(settings, entities)
    journals += [
        captions_to_folder(captions, entities, redo=False),
        captions_to_annotations(entities, redo=False),
        split_images(
            settings.out_dir / "images",
            masks,
            settings.split_df_path,
            source_dir=settings.image_dir,
            mode=settings.mode,
            val=settings.val_size,
            test=settings.test_size,
            redo=False,
        ),
    ]
    for journal in journals:
        if journal is not None and journal.left_out:
            log.warning("%d left out, reasons in %s", len(journal.left_out), journal.path)


def wanted_annotations(settings: BuildSettings) -> Path:
    """The file of descriptions, made by Kosmos-2 when it is missing and a model is named."""
    path = settings.annotations_path
    if settings.annotator_id and not path.is_file():
        annotate_images(
            settings.image_dir,
            path,
            model_id=settings.annotator_id,
            batch_size=settings.batch_size,
            max_new_tokens=128,
        )
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {GET}; or name a model that writes it: --annotator-id")
    return path


def wanted_captions(settings: BuildSettings, entities: Path) -> Path:
    """The file of captions, made by LLaVA-NeXT when it is missing and a model is named."""
    path = settings.captions_path
    if path.exists():
        return path
    if not settings.model_id:
        raise ValueError(f"{path} does not exist; {GET}; or name a model that writes it: --model-id")
    folder = settings.out_dir / "captions"
    caption_masks(entities, folder, Captioning(settings.model_id, settings.batch_size), 0, 1)
    return folder / RAW_CAPTIONS
