"""A run over the test paintings: regions are filled, prompts for them are written.

Each image's noise follows from the seed and its name, so shards, batches and interruptions change nothing.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from inpainting.data.datasets import InpaintingDataset
from inpainting.data.paintings import MANIFEST, MaskManifest
from inpainting.models.image_to_text.settings import Decoding
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.models.text_to_image.config import PaintingsConfig
from inpainting.models.text_to_image.load import LORA_FILE, load_inpainter, load_tokenizer, weights_of
from inpainting.models.text_to_image.pipeline import PaintJob, paint_all, resolve_options
from ldm.cluster import Stream, spread
from ldm.denoise import Monitor
from ldm.files import write_atomic
from ldm.images import from_pm1, write_png
from ldm.journal import in_order
from ldm.locks import note_begun
from ldm.mllm.training import ADAPTER_CONFIG
from ldm.seeds import seed_of
from ldm.settings.config import to_plain
from ldm.training.run import named_checkpoint, numbered_folders

Item = dict[str, Any]
Work = Callable[[list[Item]], None]
GENERATED_WITH = "generated_with.json"  # beside the images


def open_paintings(config: PaintingsConfig, beside: Path, texts_dir: Path | None = None) -> InpaintingDataset:
    """The images of the run with the regions that the manifest in folder `beside` records.

    texts_dir: prompts instead of captions; they must have been written for the same regions
    """
    how: dict[str, Any] = {"texts_dir": texts_dir, "global_anns_path": config.global_anns_path}
    how |= {"seed": config.seed, "freestyle": config.paint.rca}
    tokenizer = load_tokenizer(config.pretrained / "tokenizer")
    dataset = InpaintingDataset(config.data, tokenizer, config.split, **how)
    manifest = dataset.follow(beside / MANIFEST)
    if texts_dir is not None and (texts_dir / MANIFEST).is_file():
        other = MaskManifest.read(texts_dir / MANIFEST).items
        differ = [stem for stem, names in manifest.items.items() if other.get(stem) != names]
        if differ:
            wrong = f"{texts_dir}: prompts written for other regions than {beside / MANIFEST} records,"
            raise ValueError(f"{wrong} in {len(differ)} images such as {differ[0]}")
    return dataset


def pending_batches(
    config: PaintingsConfig,
    dataset: InpaintingDataset,
    stems: Sequence[str],
    is_done: Callable[[str], bool],
    title: str,
) -> Iterator[list[Item]]:
    """Lists of `config.batch` items, with a progress bar; those whose items are all done are left out.

    The lists are those of a run that nothing interrupts, as results depend on their batch a little.
    stems: names of all images to work on; is_done: of such a name
    """
    numbers, size = {stem: number for number, stem in enumerate(dataset.stems)}, config.batch
    lists = [stems[start : start + size] for start in range(0, len(stems), size)]
    groups = [[numbers[stem] for stem in part] for part in lists if not all(map(is_done, part))]
    # Threads: forked processes inherit locks of the threads of a caller, and die of signals to the group.
    items = in_order(dataset.__getitem__, chain(*groups), config.workers or os.cpu_count() or 1)
    done = len(stems) - sum(map(len, groups))
    with tqdm(total=len(stems), initial=done, desc=title, disable=None) as bar:
        for group in groups:
            yield [next(items) for _ in group]
            bar.update(len(group))


def item_masks(item: Item) -> list[np.ndarray]:
    """(s, s) bool of every region of a dataset's item."""
    return [mask[0].numpy() > 0 for mask in item["all_masks"]]


def fill_paintings(
    config: PaintingsConfig, shard: tuple[int, int] = (0, 1), ray: str = "", one_by_one: bool = False
) -> None:
    """OUT/<name>.png for each image of this shard that is not there; the same call again continues.

    one_by_one: one region after the other, each in the result of those before it (baseline)
    ray: as in `ldm.cluster.spread`
    """
    out = config.output_dir
    dataset = open_paintings(config, out, config.texts_dir)

    def turns_of(item: Item) -> list[PaintJob]:
        """What to paint into an image, in turn."""
        image_u8, stem, masks = item_image(item), item["image_stems"], item_masks(item)
        pairs = list(zip(masks, item["texts"], strict=True))
        if one_by_one:
            turns = [([pair], seed_of(stem, config.seed, turn)) for turn, pair in enumerate(pairs)]
        elif config.fixed_prompt is None:
            turns = [(pairs, seed_of(stem, config.seed))]
        else:  # it counts once, for all regions together
            turns = [([(np.any(masks, axis=0), config.fixed_prompt)], seed_of(stem, config.seed))]
        return [PaintJob(image_u8, regions, [seed]) for regions, seed in turns]

    def make() -> Work:
        lora = config.lora
        if lora is not None and config.checkpoint and numbered_folders(lora):
            lora = named_checkpoint(lora, config.checkpoint, LORA_FILE)
        model = load_inpainter(config.pretrained, lora, device=config.device, dtype=config.dtype)
        # At the size of the images, unless the settings name another.
        size = config.paint.resolution or config.data.resolution
        options = resolve_options(model, replace(config.paint, resolution=size))
        facts = {"weights": weights_of(model), "paint": to_plain(options), "seed": config.seed}
        facts |= {"regions": "one after the other" if one_by_one else "at once"}
        facts |= {"fixed_prompt": config.fixed_prompt, "texts_dir": to_plain(config.texts_dir)}
        note_begun(out / GENERATED_WITH, facts)

        def fill(items: list[Item]) -> None:
            jobs = list(map(turns_of, items))
            images_u8 = [turns[0].image_u8 for turns in jobs]
            for turn in range(max(map(len, jobs))):  # the second job paints into the first's result
                numbers = [number for number, turns in enumerate(jobs) if turn < len(turns)]
                batch = [replace(jobs[number][turn], image_u8=images_u8[number]) for number in numbers]
                painted = paint_all(batch, model, options, Monitor(progress=False))
                for number, result in zip(numbers, painted, strict=True):
                    images_u8[number] = result.image_u8
            for item, image_u8 in zip(items, images_u8, strict=True):
                if not (path := image_path(out, item["image_stems"])).is_file():
                    write_png(path, image_u8)

        return fill

    work_through(make, config, dataset, lambda stem: image_path(out, stem).is_file(), shard, ray)


def work_through(
    make: Callable[[], Work],
    config: PaintingsConfig,
    dataset: InpaintingDataset,
    is_done: Callable[[str], bool],
    shard: tuple[int, int],
    ray: str,
) -> None:
    """Do the images of a shard, of whose names `is_done` says whether their result is there."""

    def work() -> Stream:
        do, pending = make(), partial(pending_batches, config, dataset, is_done=is_done, title="images")
        return lambda batches: map(do, pending(stems=list(chain(*batches))))

    mine = dataset.stems[shard[0] :: shard[1]]
    lists = [mine[at : at + config.batch] for at in range(0, len(mine), config.batch)]
    for _ in spread(work, lists, ray):
        pass


def image_path(out: Path, stem: str) -> Path:
    return out / f"{stem}.png"


def item_image(item: Item) -> np.ndarray:
    """RGB (s, s, 3) uint8 of a dataset's item."""
    return from_pm1(item["pixel_values"])


def generate_prompts(config: PaintingsConfig, shard: tuple[int, int] = (0, 1), ray: str = "") -> None:
    """OUT/<name>.json, a list of prompts in the order of the regions; the same call again continues."""
    out, model = config.llava_output_dir, config.llava_model_id
    if out is None:
        raise ValueError("llava_output_dir: name the folder that gets the prompts")
    if not model:
        raise ValueError("llava_model_id: name the prompt writer, a model folder or that of its adapter")
    dataset = open_paintings(config, out)

    def make() -> Work:
        name = model
        if config.llava_checkpoint and numbered_folders(Path(name)):
            found = named_checkpoint(Path(name), config.llava_checkpoint, f"adapter/{ADAPTER_CONFIG}")
            name = str(found / "adapter")
        folder, adapter = (config.llava_base, Path(name)) if config.llava_base else (name, None)
        writer = PromptWriter.load(folder, adapter, config.device, config.dtype, config.llava_precision)
        if config.llava_constrained:  # max_new_tokens is divided among the prompts of an image
            regions = config.data.max_concepts or len(writer.config.colors)
            decoding = Decoding(longest=max(1, config.max_new_tokens // regions))
        else:
            decoding = Decoding(constrained=False, longest=config.max_new_tokens)
        note_begun(out / GENERATED_WITH, {"weights": writer.weights(), "decoding": to_plain(decoding)})

        def write(items: list[Item]) -> None:
            images_u8, masks = [item_image(item) for item in items], [item_masks(item) for item in items]
            written = writer.write(images_u8, masks, decoding, config.batch)
            for item, texts in zip(items, written, strict=True):
                if not (path := out / f"{item['image_stems']}.json").is_file():
                    write_atomic(path, json.dumps(texts).encode())

        return write

    work_through(make, config, dataset, lambda stem: (out / f"{stem}.json").is_file(), shard, ray)
