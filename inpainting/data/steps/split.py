"""Images into images/{train,val,test,unannotated}, copied by default; the published command moved them."""

import csv
import errno
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.paintings import GET, MAKE_MASKS, SPLITS, UNANNOTATED, image_map
from ldm.files import file_sha256, written_whole
from ldm.journal import Journal, run_items, stamp_hash, stamp_path
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)

STEP = "train-val-test-split"
MODES = ("copy", "move", "symlink")
SEED = 42  # of the published split without a file


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """How images get into the folder of their split."""

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


@dataclass(frozen=True)
class SplitSettings(TransferSettings):
    """Images -> images/{train,val,test,unannotated}. Copies by default."""

    image_dir: Path = setting(help="folder of images; gets a folder per split")
    masks_dir: Path = setting(help="folder of masks; an image without any is unannotated")
    split_df_path: Path | None = setting(None, help="table of file_name and split; default: a random split")
    val_size: int = setting(5000, low=1, help="validation images of a random split")
    test_size: int = setting(5000, low=1, help="test images of a random split")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with at least these columns."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {GET}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"{path}: the table has no column {lacking[0]}")
            return [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV table: {error}") from None


def split_images(
    settings: SplitSettings, source_dir: Path | None = None, redo: bool = True
) -> Journal | None:
    """Put the images into the folders of their split."""
    # The images are in `source_dir`, or in `image_dir` itself. A dry run has no journal.
    masks_dir, table_path = settings.masks_dir, settings.split_df_path
    images = image_map(source_dir or settings.image_dir)
    if not masks_dir.is_dir():
        raise ValueError(f"no folder {masks_dir}; `python -m inpainting.data.ops {MAKE_MASKS}` makes it")
    masked = {path.name for path in masks_dir.iterdir() if path.is_dir()}
    annotated = [name for name in sorted(images) if Path(name).stem in masked]
    sizes = [settings.val_size, settings.test_size]
    if table_path is None:
        if sum(sizes) >= len(annotated):
            raise ValueError(
                f"a split with {sizes[0]} val and {sizes[1]} test images needs more annotated images "
                f"than these {len(annotated)}; set --val-size and --test-size, or --split-df-path"
            )
        # The published draw over sorted names: hold out val + test, then divide what is held out. Each draw
        # takes the first of a permutation, as scikit-learn's `train_test_split` with seed 42 does.
        held = np.random.RandomState(SEED).permutation(len(annotated))[: sum(sizes)]
        table = dict.fromkeys(annotated, "train")
        for rank, index in enumerate(np.random.RandomState(SEED).permutation(len(held))):
            table[annotated[held[index]]] = "test" if rank < settings.test_size else "val"
    else:
        table = {row["file_name"]: row["split"] for row in read_rows(table_path, ("file_name", "split"))}
    placed = {name: table.get(name, "") for name in annotated}  # "": not in the table
    plan = {name: placed.get(name, UNANNOTATED) for name in sorted(images)}
    inputs = {
        "table": sizes if table_path is None else file_sha256(table_path),
        "after": stamp_hash(masks_dir, MAKE_MASKS),
    }
    return distribute(plan, images, settings.image_dir, inputs, settings, redo)


def distribute(
    plan: Mapping[str, str],
    images: Mapping[str, Path],
    image_dir: Path,
    inputs: Mapping[str, Any],
    how: TransferSettings,
    redo: bool = True,
) -> Journal | None:
    """Bring images into the folders of `plan`; one that is planned for no split is left out."""
    counts = Counter(folder or "not in the table" for folder in plan.values())
    log.info("%s", ", ".join(f"{folder} {count}" for folder, count in sorted(counts.items())))
    if how.dry_run:
        return None
    folders = (*SPLITS, UNANNOTATED)

    def work(name: str) -> Mapping[str, Any]:
        folder = plan[name]
        if folder not in folders:
            raise ValueError(f"the table gives it the split {folder!r}, allowed are {', '.join(SPLITS)}")
        if name not in images:
            raise ValueError(f"no such image in {image_dir}")
        source, target = images[name], image_dir / folder / name
        split_before = source.parent.resolve().parent == image_dir.resolve()  # no unsplit original is left
        if source != target:
            transfer(source, target, "move" if split_before else how.mode)
        for other in folders:
            if other != folder:
                (image_dir / other / name).unlink(missing_ok=True)
        return {"split": folder}

    for folder in folders:
        (image_dir / folder).mkdir(parents=True, exist_ok=True)
    journal = Journal(stamp_path(image_dir, STEP), {"mode": how.mode, **inputs}, redo=redo)
    run_items(journal, list(plan), work, workers=1)
    return journal


def transfer(source: Path, target: Path, mode: str) -> None:
    """Copy, move or link a file; `target` appears as a whole."""
    if mode == "move":
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:  # another disk: copy, then delete
                raise
    with written_whole(target) as temporary:
        if mode == "symlink":
            temporary.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
        else:
            shutil.copy2(source, temporary)
    if mode == "move":
        source.unlink()
