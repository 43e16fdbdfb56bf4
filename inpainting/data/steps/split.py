"""Images into images/{train,val,test,unannotated}, copied by default; the published command moved them."""

import errno
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.paintings import MAKE_MASKS, SPLITS, UNANNOTATED, image_map, source_file
from ldm.files import file_sha256, nfc, read_table, written_whole
from ldm.journal import Journal, run_step, stamp_hash, stamp_path
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)

STEP = "train-val-test-split"
MODES = ("copy", "move", "symlink")
SEED = 42  # of the published split without a file


@dataclass(frozen=True)
class TransferSettings:
    """How images get into the folder of their split."""

    image_dir: Path = setting(help="folder of images; gets a folder per split")
    _: KW_ONLY
    copy: bool = setting(False, help="copy the images (what happens when none of the three is given)")
    move: bool = setting(False, help="move the images, as published")
    symlink: bool = setting(False, help="link to the images")
    dry_run: bool = setting(False, help="only say how many images would go where")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.copy + self.move + self.symlink > 1:
            raise ValueError("give one of --copy, --move and --symlink")

    def plan(self, names: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
        """{image: its split, "" for none}, and what decides that, for the journal."""
        raise NotImplementedError


@dataclass(frozen=True)
class SplitSettings(TransferSettings):
    masks_dir: Path = setting(help="folder of masks; an image without any is unannotated")
    split_df_path: Path | None = setting(None, help="table of file_name and split; default: a random split")
    val_size: int = setting(5000, low=1, help="validation images of a random split")
    test_size: int = setting(5000, low=1, help="test images of a random split")

    def plan(self, names: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
        masks_dir, sizes = self.masks_dir, [self.val_size, self.test_size]
        if not masks_dir.is_dir():
            raise ValueError(f"no folder {masks_dir}; `python -m inpainting.data.ops {MAKE_MASKS}` makes it")
        masked = {nfc(path.name) for path in masks_dir.iterdir() if path.is_dir()}
        annotated = [name for name in names if Path(name).stem in masked]
        if self.split_df_path is not None:
            rows = read_table(source_file(self.split_df_path), ("file_name", "split"))
            table = one_split_each(self.split_df_path, [(row["file_name"], row["split"]) for row in rows])
        elif sum(sizes) >= len(annotated):
            wrong = f"{sizes[0]} val and {sizes[1]} test images needs more annotated images than these"
            way = "set --val-size and --test-size, or --split-df-path"
            raise ValueError(f"a split with {wrong} {len(annotated)}; {way}")
        else:
            # The published draw over sorted names: hold out val + test, then divide what is held out. Each
            # draw takes the first of a permutation, as scikit-learn's `train_test_split` with seed 42 does.
            held = np.random.RandomState(SEED).permutation(len(annotated))[: sum(sizes)]
            table = dict.fromkeys(annotated, "train")
            for rank, index in enumerate(np.random.RandomState(SEED).permutation(len(held))):
                table[annotated[held[index]]] = "test" if rank < self.test_size else "val"
        given = sizes if self.split_df_path is None else file_sha256(self.split_df_path)
        inputs = {"table": given, "after": stamp_hash(masks_dir, MAKE_MASKS)}
        return {name: table.get(name, "") for name in annotated}, inputs


def one_split_each(path: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{image: split} of a table; an image in two splits is refused, equal rows are one."""
    table: dict[str, str] = {}
    for given, split in pairs:
        name = nfc(given)
        if table.setdefault(name, split) != split:
            raise ValueError(f"{path}: {name} is in two splits, {table[name]} and {split}")
    return table


def split_images(settings: TransferSettings, source: Path | None = None, redo: bool = True) -> Journal | None:
    """Put the images into the folders of their split; those without annotation are unannotated."""
    # An image that is planned for no split is left out. A dry run has no journal.
    image_dir, folders = settings.image_dir, (*SPLITS, UNANNOTATED)
    mode = "move" if settings.move else "symlink" if settings.symlink else "copy"
    images = cache(lambda: image_map(source or image_dir))
    names = sorted(images())
    planned, inputs = settings.plan(names)
    plan = {**dict.fromkeys(names, UNANNOTATED), **planned}
    images.cache_clear()  # another process may move them until the step is begun
    counts = Counter(folder or "not in the table" for folder in plan.values())
    log.info("%s", ", ".join(f"{folder} {count}" for folder, count in sorted(counts.items())))
    if settings.dry_run:
        return None

    def work(name: str) -> Mapping[str, Any]:
        folder = plan[name]
        if folder not in folders:
            raise ValueError(f"the table gives it the split {folder!r}, allowed are {', '.join(SPLITS)}")
        if name not in images():
            raise ValueError(f"no such image in {image_dir}")
        image = images()[name]
        target = image_dir / folder / image.name
        split_before = image.parent.resolve().parent == image_dir.resolve()  # no unsplit original is left
        if image != target:
            transfer(image, target, "move" if split_before else mode)
        for other in folders:
            if other != folder:
                (image_dir / other / image.name).unlink(missing_ok=True)
        return {"split": folder}

    for folder in folders:
        (image_dir / folder).mkdir(parents=True, exist_ok=True)

    def is_whole(name: str, record: Mapping[str, Any]) -> bool:
        return (image_dir / record["split"] / name).is_file()

    stamp = stamp_path(image_dir, STEP)
    return run_step(stamp, {"mode": mode, **inputs}, list(plan), work, redo, is_whole=is_whole)


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
