"""Measure the filled images of a run against the originals.

What was measured is kept in OUT/measured/NAME.npz: features, and the numbers as JSON with the key of what
they were measured on (the same image, the same regions, the same networks). So an interrupted measurement
continues, and a second one is free.
"""

import hashlib
import io
import json
import logging
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inpainting.models.metrics.measure import Backbones, ImageMetrics, InpaintedImage, measure_image
from inpainting.models.metrics.report import ALL, MULTI, NEEDS, metrics_report
from inpainting.models.text_to_image.evaluation.generate import (
    PaintingsConfig,
    image_path,
    item_image,
    item_masks,
    open_paintings,
    pending_batches,
)
from inpainting.models.text_to_image.load import load_tokenizer
from ldm.device import pick_device
from ldm.files import file_sha256, write_atomic
from ldm.images import read_image
from ldm.metrics.intervals import format_estimate
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

MEASURED = "measured"  # folder beside the images
VERSION = 1  # of what `measure_image` computes
SEVERAL = 2  # regions, from which an image counts for --only-multi-prompt


def compute(config: PaintingsConfig, only_multi_prompt: bool = False, partial: bool = False) -> Path:
    """Write metrics.json or metrics_multi.json into the folder of the images; returns its path.

    only_multi_prompt: only images with two regions or more;  partial: leave out images that are missing
    What was measured before on the same images with the same networks is not measured again.
    """
    device = pick_device(config.device)
    networks = Backbones.load(config.backbones, device)
    metrics = measure_run(config, networks, device, only_multi_prompt, partial)
    if not metrics:
        raise ValueError(f"{config.output_dir}: no image to measure")
    path = config.output_dir / (MULTI if only_multi_prompt else ALL)
    content = metrics_report(metrics, config.seed, config.resamples, config.fid_resamples)
    content["settings"] = {"row": config.row, "split": config.split, "only_multi_prompt": only_multi_prompt}
    content["backbones"] = networks.used
    needed = {name: need for name, need in NEEDS.items() if need in networks.skipped}
    content["skipped"] = {name: f"{need}: {networks.skipped[need]}" for name, need in needed.items()}
    write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    lines = [f"{'':32}{'whole image':>30}{'masked regions only':>30}"]
    tables = [content["with_intervals"], content["masked_regions_only"]]
    for name in sorted(set(tables[0]) | set(tables[1])):
        lines.append(
            f"{name:32}" + "".join(f"{format_estimate(table.get(name), '.4f'):>30}" for table in tables)
        )
    lines += [f"skipped {name}: {why}" for name, why in content["skipped"].items()]
    log.info("%s", "\n".join(lines))
    log.info("%s", path)
    return path


def measure_run(
    config: PaintingsConfig, networks: Backbones, device: torch.device, only_multi_prompt: bool, partial: bool
) -> list[ImageMetrics]:
    """The metrics of every image of the run. The captions are the annotated ones, whatever was painted."""
    out = config.output_dir
    dataset = open_paintings(config, load_tokenizer(config.pretrained / "tokenizer"), out, None)
    assert dataset.manifest is not None
    masks = dataset.manifest.items
    stems = [stem for stem in dataset.stems if not only_multi_prompt or len(masks[stem]) >= SEVERAL]
    missing = {stem for stem in stems if not image_path(out, stem).is_file()}
    if missing and not partial:
        raise ValueError(
            f"{out}: {len(missing)} of {len(stems)} images are missing, such as {min(missing)}.png; "
            "run generate, or measure the others with --partial"
        )
    facts = {"data": to_plain(config.data), "descriptions": to_plain(config.global_anns_path)}
    facts["networks"] = {name: used["sha256"] for name, used in networks.used.items()}
    keys: dict[str, str] = {}
    for stem in stems:
        if stem not in missing:
            text = json.dumps(
                [VERSION, facts, file_sha256(image_path(out, stem)), masks[stem]], sort_keys=True
            )
            keys[stem] = hashlib.sha256(text.encode()).hexdigest()
    results = {}
    for stem, key in keys.items():  # what was stored for an image counts where its key is the same
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            with np.load(out / MEASURED / f"{stem}.npz", allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                features = {name.removeprefix("f_"): stored[name] for name in stored.files if name != "about"}
            if about.pop("key", None) == key:
                results[stem] = ImageMetrics(stem, **about, features=features)
    done = {*dataset.stems} - keys.keys() | results.keys()
    for items in pending_batches(config, dataset, (0, 1), done.__contains__, "measuring"):
        for item in items:
            stem = item["image_stems"]
            truth_u8, masks_of = item_image(item), item_masks(item)
            painted_u8, texts = read_image(image_path(out, stem)).rgb_u8, item["gt_texts"]
            image = InpaintedImage(stem, truth_u8, painted_u8, masks_of, texts, item.get("global_text"))
            metrics = results[stem] = measure_image(image, networks, device)
            names = ("regions", "pixels", "numbers", "masked_pixels")
            about = {"key": keys[stem], **{name: getattr(metrics, name) for name in names}}
            arrays: dict[str, Any] = {f"f_{name}": value for name, value in metrics.features.items()}
            buffer = io.BytesIO()
            np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
            write_atomic(out / MEASURED / f"{stem}.npz", buffer.getvalue())
    return [results[stem] for stem in keys]
