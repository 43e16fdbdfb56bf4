"""Measure the filled images of a run against the originals, and collate runs into the paper's table."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from inpainting.models.metrics.backbones import Backbones
from inpainting.models.metrics.measure import Case, Row, measure
from inpainting.models.metrics.report import NEEDS, report
from inpainting.models.metrics.store import RowStore
from inpainting.models.metrics.table import ALL, MULTI, collate
from inpainting.models.text_to_image.evaluation.generate import image, image_path
from inpainting.models.text_to_image.evaluation.settings import (
    PaintingsConfig,
    in_batches,
    open_paintings,
)
from inpainting.models.text_to_image.load import load_tokenizer
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.images import read_image
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

MEASURED = "measured"  # folder beside the images
SEVERAL = 2  # regions, from which an image counts for --only-multi-prompt


def compute(config: PaintingsConfig, only_multi_prompt: bool = False, partial: bool = False) -> Path:
    """Write metrics.json or metrics_multi.json into the folder of the images; returns its path.

    only_multi_prompt: only images with two regions or more;  partial: leave out images that are missing
    What was measured before on the same images with the same networks is not measured again.
    """
    device = pick_device(config.device)
    networks = Backbones.load(config.backbones, device)
    rows = measure_all(config, networks, device, only_multi_prompt, partial)
    if not rows:
        raise ValueError(f"{config.output_dir}: no image to measure")
    path = config.output_dir / (MULTI if only_multi_prompt else ALL)
    content = report(rows, config.seed, config.resamples, config.fid_resamples)
    content["settings"] = {"row": config.row, "split": config.split, "only_multi_prompt": only_multi_prompt}
    content["backbones"] = networks.used
    needed = {name: need for name, need in NEEDS.items() if need in networks.skipped}
    content["skipped"] = {name: f"{need}: {networks.skipped[need]}" for name, need in needed.items()}
    write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    log.info("%s", show(content))
    log.info("%s", path)
    return path


def measure_all(
    config: PaintingsConfig, networks: Backbones, device: torch.device, only_multi_prompt: bool, partial: bool
) -> list[Row]:
    """A row for every image of the run. The captions are the true ones, whatever was painted."""
    out = config.output_dir
    dataset = open_paintings(config, load_tokenizer(config.pretrained / "tokenizer"), out, None)
    assert dataset.manifest is not None
    masks = dataset.manifest.items
    wanted = [stem for stem in dataset.stems if not only_multi_prompt or len(masks[stem]) >= SEVERAL]
    missing = [stem for stem in wanted if not image_path(out, stem).is_file()]
    if missing and not partial:
        raise ValueError(
            f"{out}: {len(missing)} of {len(wanted)} images are missing, such as {missing[0]}.png; "
            "run generate, or measure the others with --partial"
        )
    there = [stem for stem in wanted if stem not in set(missing)]
    facts = {"data": to_plain(config.data), "descriptions": to_plain(config.global_anns_path)}
    facts["networks"] = {name: one["sha256"] for name, one in networks.used.items()}
    store = RowStore(out / MEASURED, facts)
    keys = {stem: store.key(image_path(out, stem), masks[stem]) for stem in there}
    rows = {stem: row for stem in there if (row := store.read(stem, keys[stem])) is not None}
    todo = [k for k, stem in enumerate(dataset.stems) if stem in keys and stem not in rows]
    with tqdm(total=len(there), initial=len(rows), desc="measuring", disable=None) as bar:
        for items in in_batches(dataset, todo, config.batch, config.workers):
            for item in items:
                row = measure(as_case(item, out), networks, device)
                rows[row.stem] = row
                store.write(row, keys[row.stem])
                bar.update()
    return [rows[stem] for stem in there]


def as_case(item: dict[str, Any], out: Path) -> Case:
    """A dataset's item and its filled image."""
    stem = item["image_stems"]
    result = read_image(image_path(out, stem)).rgb_u8
    masks = [mask[0].numpy() > 0 for mask in item["all_masks"]]
    return Case(stem, image(item), result, masks, item["gt_texts"], item.get("global_text"))


def show(content: dict[str, Any]) -> str:
    """The numbers as a text table: whole images, and the regions alone."""
    lines = [f"{'':32}{'whole image':>30}{'masked regions only':>30}"]
    tables = [content["with_intervals"], content["masked_regions_only"]]
    for name in sorted(set(tables[0]) | set(tables[1])):
        lines.append(f"{name:32}" + "".join(f"{spelled(table.get(name)):>30}" for table in tables))
    return "\n".join([*lines, *(f"skipped {name}: {why}" for name, why in content["skipped"].items())])


def spelled(number: dict[str, float] | None) -> str:
    if number is None:
        return "-"
    spread = f" [{number['low']:.4f}, {number['high']:.4f}]" if "low" in number else ""
    return f"{number['value']:.4f}{spread}"


def make_table(configs: Sequence[PaintingsConfig], out: Path) -> str:
    """The paper's table with the runs that were measured beside the published rows; also written to `out`."""
    measured = [
        (config.row, config.output_dir)
        for config in configs
        if config.row and any((config.output_dir / name).is_file() for name in (ALL, MULTI))
    ]
    table = collate(measured)
    write_atomic(out, table.encode())
    return table
