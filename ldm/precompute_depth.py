"""Depth maps for a tree of images, once, before training.

    python -m ldm.precompute_depth data/MOSE/train/JPEGImages data/MOSE/train/depth
    python -m ldm.precompute_depth IMAGES DEPTH --model models/depth --shard 3/8

OUT_TREE mirrors the tree: a/b.jpg gives a/b.png, 16 bits, 1 = nearest, with as many pixels as the network
sees (DPT: 384 on the shorter side), at most the image's. A map that is there is kept, so the same command
continues an interrupted run, and several at once divide the images. Batches are fixed parts of the list, so
an interruption changes no map.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ldm.cluster import Stream, spread
from ldm.files import read_json, visible_files, write_json
from ldm.images import read_image, write_depth
from ldm.journal import attempt_in_order
from ldm.locks import lock_beside, taken
from ldm.registry.models import DEFAULT_DEPTH, depth_for_photographs
from ldm.settings.choices import Divided, shard_of
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import setting

if TYPE_CHECKING:
    from ldm.experts.depth import DepthEstimator

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RECORD = "depth_model.json"  # in OUT_TREE: which network made the maps
TAKEN = 8  # batches that a process takes at a time, so that it can read ahead
Part = list[dict[Path, Path]]  # of each batch depth map -> image


@dataclass(frozen=True)
class DepthSettings(Divided):
    images: Path = setting(aliases=("IMAGE_TREE",), help="tree of images")
    out: Path = setting(aliases=("OUT_TREE",), help="tree of depth maps")
    model: str | None = setting(None, help=f"folder or hub name; {DEFAULT_DEPTH}")
    batch: int = setting(8, low=1, help="images per pass")
    workers: int = setting(4, low=1, help="threads that read and write")
    suffix: tuple[str, ...] = setting(IMAGE_SUFFIXES, help="kinds of image files")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", help="auto, fp32, fp16 or bf16")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.resolve().is_relative_to(self.images.resolve()):
            where = f"OUT_TREE {self.out} lies in {self.images}"
            raise ValueError(f"{where}, so its maps would be read as images")


def all_there(paths: Iterable[Path]) -> bool:
    return all(path.is_file() for path in paths)


def estimate_tree(settings: DepthSettings) -> None:
    """Estimate the depth of every image of a tree; the same command again continues."""
    from ldm.device import pick_device, pick_dtype
    from ldm.experts.depth import DepthEstimator, weights_of_depth

    if not settings.images.is_dir():
        raise ValueError(f"IMAGE_TREE: there is no folder {settings.images}")
    kinds = [suffix.lower() for suffix in settings.suffix]
    images_of: dict[Path, Path] = {}  # depth map -> image
    for image in visible_files(settings.images, "**/*"):
        if image.suffix.lower() not in kinds:
            continue
        path = settings.out / image.relative_to(settings.images).with_suffix(".png")
        if images_of.setdefault(path, image) != image:
            both = f"{images_of[path]} and {image.name} would have one depth map"
            raise ValueError(f"{both}; choose one kind of file: --suffix {image.suffix}")
    if not images_of:
        raise ValueError(f"IMAGE_TREE: {settings.images} holds no images ({', '.join(kinds)})")
    index, every = shard_of(settings.shard)
    paths = list(images_of)[index::every]
    folder, record_path = depth_for_photographs(settings.model), settings.out / RECORD
    written = unreadable = 0
    record = {"model": folder.as_posix(), "weights": weights_of_depth(folder)}
    known = read_json(record_path) if record_path.is_file() else record
    if known != record and (known["weights"] != record["weights"] or not record["weights"]):
        made = f"{settings.out} was made with {known['model']}"
        raise ValueError(f"{made}; choose another OUT_TREE for {folder}")
    if not all_there(paths) or any(lock_beside(path).exists() for path in paths):  # of a dead process
        batches = [paths[start : start + settings.batch] for start in range(0, len(paths), settings.batch)]
        parts = [batches[start : start + TAKEN] for start in range(0, len(batches), TAKEN)]
        work = [[{path: images_of[path] for path in batch} for batch in part] for part in parts]

        def make() -> Stream:
            device = pick_device(settings.device)
            dtype = pick_dtype(settings.dtype, device, folder, "fp32")  # bf16 resolves 8 bits
            depth = DepthEstimator.load(folder, device=str(device), dtype=dtype)
            if not record_path.is_file():
                write_json(record_path, record)
            return partial(write_maps, settings, depth)

        for new, bad in spread(make, work, settings.ray):
            written, unreadable = written + new, unreadable + len(bad)
            for reason in bad:
                log.warning("left out: %s", reason)
    there = len(paths) - written - unreadable
    log.info("%d written, %d there already, %d left out: %s", written, there, unreadable, settings.out)


def write_maps(
    settings: DepthSettings, depth: "DepthEstimator", parts: Iterable[Part]
) -> Iterator[tuple[int, list[str]]]:
    """Write the maps of parts; of each batch how many, and why other images have none."""
    threads, unit = settings.workers, settings.batch * TAKEN
    bar = tqdm(parts, desc="depth", unit_scale=unit, disable=None)
    with ThreadPoolExecutor(threads) as writers, bar:
        for part in taken(bar, lambda part: all(map(all_there, part)), lambda part: next(iter(part[0]))):
            todo = [batch for batch in part if not all_there(batch)]
            read = attempt_in_order(read_image, (image for b in todo for image in b.values()), threads)
            for batch in todo:
                images = dict(zip(batch, islice(read, len(batch)), strict=True))
                bad = [str(image) for image in images.values() if isinstance(image, ValueError)]
                good = {path: i for path, i in images.items() if not isinstance(i, ValueError)}
                maps = depth.estimate_many(list(good.values()), batch_size=settings.batch, enlarge=False)
                new = {path: map_ for path, map_ in zip(good, maps, strict=True) if not path.is_file()}
                list(writers.map(write_depth, new, new.values()))
                yield len(new), bad


build_app = single_app(command(DepthSettings, estimate_tree))

if __name__ == "__main__":
    run_module(build_app)
