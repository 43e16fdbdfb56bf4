"""Measure the filled pictures of a run against the originals, and collate runs into the paper's table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from inpainting.models.metrics.backbones import Backbones
from inpainting.models.metrics.measure import Case, Row, measure
from inpainting.models.metrics.report import NEEDS, report
from inpainting.models.metrics.table import ALL, MULTI, collate
from inpainting.models.text_to_image.generate import picture, picture_path
from inpainting.models.text_to_image.load import load_tokenizer
from inpainting.models.text_to_image.settings import PaintingsConfig, in_batches, open_paintings
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.images import read_picture

log = logging.getLogger(__name__)

SEVERAL = 2  # regions, from which a picture counts for --only-multi-prompt


def compute(config: PaintingsConfig, only_multi_prompt: bool = False, partial: bool = False) -> Path:
    """Write metrics.json or metrics_multi.json into the folder of the pictures; returns its path.

    only_multi_prompt: only pictures with two regions or more;  partial: leave out pictures that are missing
    """
    device = pick_device(config.device)
    networks = Backbones.load(config.backbones, device)
    cases = open_cases(config, only_multi_prompt, partial)
    rows: list[Row] = [measure(case, networks, device) for case in cases]
    if not rows:
        raise ValueError(f"{config.output_dir}: no picture to measure")
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


def open_cases(config: PaintingsConfig, only_multi_prompt: bool, partial: bool) -> Iterator[Case]:
    """Every picture of the run with its original. The captions are the true ones, whatever was painted."""
    out = config.output_dir
    tokenizer = load_tokenizer(config.pretrained / "tokenizer")
    dataset = open_paintings(config, tokenizer, out, None)
    assert dataset.manifest is not None
    names = list(dataset.manifest.items.values())
    wanted = [k for k in range(len(dataset)) if not only_multi_prompt or len(names[k]) >= SEVERAL]
    missing = [k for k in wanted if not picture_path(out, dataset.stems[k]).is_file()]
    if missing and not partial:
        raise ValueError(
            f"{out}: {len(missing)} of {len(wanted)} pictures are missing, such as "
            f"{dataset.stems[missing[0]]}.png; run generate, or measure the others with --partial"
        )
    there = sorted(set(wanted) - set(missing))
    batches = in_batches(dataset, there, config.batch, config.workers)
    with tqdm(total=len(there), desc="measuring", disable=None) as bar:
        for items in batches:
            for item in items:
                yield as_case(item, out)
                bar.update()


def as_case(item: dict[str, Any], out: Path) -> Case:
    """A dataset's item and its filled picture."""
    stem = item["image_stems"]
    result = read_picture(picture_path(out, stem)).rgb_u8
    masks = [mask[0].numpy() > 0 for mask in item["all_masks"]]
    return Case(stem, picture(item), result, masks, item["gt_texts"], item.get("global_text"))


def show(content: dict[str, Any]) -> str:
    """The numbers as a text table: whole pictures, and the regions alone."""
    lines = [f"{'':32}{'whole picture':>30}{'masked regions only':>30}"]
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
