"""What a run over the test paintings is: its model, its images, its prompts, its results."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from inpainting.data.choice import MANIFEST, MaskManifest, PaintingOptions
from inpainting.data.datasets import InpaintingDataset
from inpainting.data.paintings import SPLITS
from inpainting.data.steps.describe import PRECISIONS
from inpainting.models.metrics.measure import BackboneFiles
from inpainting.models.metrics.report import PAPER_ROWS
from inpainting.models.text_to_image.config import COMPAT, PaintOptions
from ldm.files import read_json, write_atomic
from ldm.settings.config import check_settings, setting

GENERATED_WITH = "generated_with.json"  # beside the images


@dataclass(frozen=True)
class PaintingsConfig:
    """One model over all images of a split."""

    output_dir: Path = setting(help="folder of the filled images")
    row: str = setting("", choices=("", *PAPER_ROWS), help="row of the paper's table that this run repeats")
    seed: int = setting(42, low=0, help="seed of the regions and, with each name, of its image")
    pretrained: Path = setting(Path("models/stable-diffusion-2-inpainting"), help="model folder")
    lora: Path | None = setting(None, help="LoRA in the released format: file, or folder that holds it")
    fixed_prompt: str | None = setting(None, help="one prompt for all regions instead of their captions")
    texts_dir: Path | None = setting(None, help="folder of NAME.json, prompts to use instead of captions")
    global_anns_path: Path | None = setting(None, help="descriptions of whole images, for one more metric")
    split: str = setting("test", choices=SPLITS, help="which images")
    data: PaintingOptions = setting(PaintingOptions(), help="regions of the images")
    paint: PaintOptions = setting(COMPAT, help="how to paint; by default as published")
    batch: int = setting(8, low=1, help="images that go through the model together")
    workers: int = setting(8, low=0, help="loader processes")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", help="auto, fp32, fp16 or bf16")
    llava_model_id: str = setting("", help="prompt writer: folder or hub name, or folder of its adapter")
    llava_base: str = setting("", help="model under the adapter; default: what the adapter names")
    llava_output_dir: Path | None = setting(None, help="folder of the prompts it writes")
    llava_precision: str = setting("auto", choices=PRECISIONS, help="4bit as published, or full")
    llava_constrained: bool = setting(
        True, help="one closed tag per colour is certain; off: decoded as published"
    )
    max_new_tokens: int = setting(512, low=1, help="longest answer of the prompt writer, all its prompts")
    backbones: BackboneFiles = setting(BackboneFiles(), help="metric models")
    resamples: int = setting(2000, low=0, help="bootstrap resamples of the intervals; 0 = none")
    fid_resamples: int = setting(20, low=0, help="the same for FID and KID, which are slow")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.fixed_prompt is not None and self.texts_dir is not None:
            raise ValueError("fixed_prompt and texts_dir exclude each other")


def open_paintings(
    config: PaintingsConfig, tokenizer: CLIPTokenizer, beside: Path, texts_dir: Path | None
) -> InpaintingDataset:
    """The images of the run with the regions that the manifest in folder `beside` records.

    texts_dir: prompts instead of captions; they must have been written for the same regions
    """
    dataset = InpaintingDataset(
        config.data,
        tokenizer,
        config.split,
        seed=config.seed,
        freestyle=config.paint.rca,
        texts_dir=texts_dir,
        global_anns_path=config.global_anns_path,
    )
    manifest = dataset.follow(beside / MANIFEST)
    if texts_dir is not None and (texts_dir / MANIFEST).is_file():
        other = MaskManifest.read(texts_dir / MANIFEST).items
        differ = [stem for stem, names in manifest.items.items() if other.get(stem) != names]
        if differ:
            raise ValueError(
                f"{texts_dir}: prompts written for other regions than {beside / MANIFEST} records, "
                f"in {len(differ)} images such as {differ[0]}"
            )
    return dataset


def pending_batches(
    config: PaintingsConfig,
    dataset: InpaintingDataset,
    shard: tuple[int, int],
    is_done: Callable[[str], bool],
    title: str,
) -> Iterator[list[dict[str, Any]]]:
    """The items of shard (index, count) that are not done, in lists of `config.batch`, with a progress bar.

    is_done: of the name of an image
    """
    index, count = shard
    stems = dataset.stems
    mine = range(len(stems))[index::count]
    pending = [number for number in mine if not is_done(stems[number])]
    groups = [pending[start : start + config.batch] for start in range(0, len(pending), config.batch)]
    workers = min(config.workers, len(groups))
    loader = DataLoader(dataset, batch_sampler=groups, collate_fn=list, num_workers=workers)
    with tqdm(total=len(mine), initial=len(mine) - len(pending), desc=title, disable=None) as bar:
        for items in loader:
            yield items
            bar.update(len(items))


def item_masks(item: dict[str, Any]) -> list[np.ndarray]:
    """(s, s) bool of every region of a dataset's item."""
    return [mask[0].numpy() > 0 for mask in item["all_masks"]]


def record(path: Path, facts: dict[str, Any]) -> None:
    """Note what decides the results beside them; a folder that was begun otherwise is not continued."""
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    if not path.is_file():
        write_atomic(path, text.encode())
        return
    before, now = read_json(path), json.loads(text)
    differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differ:
        raise ValueError(
            f"{path.parent} was begun with another {', '.join(differ)} ({path.name}); choose another folder"
        )
