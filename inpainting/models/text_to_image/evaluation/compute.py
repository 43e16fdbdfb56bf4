"""Measure the filled images of a run against the originals.

What was measured is kept in OUT/measured/NAME.npz: features, and the numbers as JSON with the key of what
they were measured on (image, regions, networks). metrics.json has the published names and units: psnr in dB;
fid as it is; the rest fractions or cosines up to 1 (the paper's table shows those times 100).
"""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.text_to_image.config import ALL, MULTI, PAPER_ROWS, PaintingsConfig
from inpainting.models.text_to_image.evaluation import generate, measure
from ldm.device import pick_device
from ldm.files import file_sha256, read_json, write_atomic
from ldm.images import read_image
from ldm.metrics.numbers import (
    Estimate,
    centred_interval,
    decibels,
    format_estimate,
    frechet_distance,
    kernel_distance,
    value_of,
    with_interval,
)
from ldm.result import write_result
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

MEANS = ("lpips", "clip_iqa", "clip_score_text2image", "clip_score_image2image")
OUTSIDE = "outside_"  # the masks: what should not have changed
GLOBAL = "clip_score_text2image_global"
PUBLISHED = ("psnr", "lpips", "fid", "clip_iqa", GLOBAL, "clip_score_text2image", "clip_score_image2image")
BY_MASKS = ("psnr", "clip_score_text2image")
MOST_MASKS = 5
NEEDS = {"fid": "inception", "kid": "inception", "lpips": "squeezenet", "clip_iqa": "clip_iqa"}
NEEDS |= dict.fromkeys((*MEANS[2:], GLOBAL), "clip")
COLUMNS = ("fid", "lpips", "psnr", "clip_iqa", "clip_score_image2image", "clip_score_text2image")
TITLES = ("FID", "LPIPS", "PSNR", "CLIP-IQA", "I2I", "T2I")
PERCENT = {"lpips", "clip_iqa", "clip_score_image2image", "clip_score_text2image"}

MEASURED = "measured"  # folder beside the images
VERSION = 2  # of what `measure_images` computes


def compute(config: PaintingsConfig, only_multi_prompt: bool = False, partial: bool = False) -> Path:
    """Write metrics.json or metrics_multi.json into the folder of the images; returns its path.

    only_multi_prompt: only images with two regions or more;  partial: leave out images that are missing
    """
    networks = measure.Backbones.load(config.backbones, pick_device(config.device))
    metrics = measure_run(config, networks, only_multi_prompt, partial)
    if not metrics:
        raise ValueError(f"{config.output_dir}: no image to measure")
    path = config.output_dir / (MULTI if only_multi_prompt else ALL)
    seed, resamples, fid_resamples = config.seed, config.resamples, config.fid_resamples
    views = ("", "masked_", OUTSIDE)
    whole, masked, outside = (numbers(metrics, view, seed, resamples, fid_resamples) for view in views)
    by_masks = {
        str(count): numbers([row for row in metrics if row.regions == count], "", seed, resamples, 0)
        for count in sorted({row.regions for row in metrics})
    }
    # The published keys, None where nothing was measured; then the same with intervals.
    content: dict[str, Any] = {name: value_of(whole, name) for name in PUBLISHED}
    for count in range(1, MOST_MASKS + 1):
        for name in BY_MASKS:
            content[f"n_masks_{name}_{count}"] = value_of(by_masks.get(str(count), {}), name)
    skipped = networks.skipped
    content |= {
        "images": len(metrics),
        "regions": sum(row.regions for row in metrics),
        "with_intervals": whole,
        "masked_regions_only": masked,
        "outside_of_masks": outside,
        "by_number_of_masks": by_masks,
        "settings": {"row": config.row, "split": config.split, "only_multi_prompt": only_multi_prompt},
        "backbones": networks.used,
        "skipped": {name: f"{need}: {skipped[need]}" for name, need in NEEDS.items() if need in skipped},
    }
    write_result({path: (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()})
    lines = [f"{'':32}{'whole image':>30}{'masked regions only':>30}{'outside of masks':>30}"]
    for name in sorted(whole.keys() | masked.keys() | outside.keys()):
        cells = [format_estimate(table.get(name), ".4f") for table in (whole, masked, outside)]
        lines.append(f"{name:32}" + "".join(f"{cell:>30}" for cell in cells))
    lines += [f"skipped {name}: {why}" for name, why in content["skipped"].items()]
    log.info("%s", "\n".join(lines))
    log.info("%s", path)
    return path


def measure_run(
    config: PaintingsConfig, networks: measure.Backbones, only_multi: bool, partial: bool
) -> list[measure.ImageMetrics]:
    """The metrics of every image of the run. The captions are the annotated ones, whatever was painted."""
    out = config.output_dir
    dataset = generate.open_paintings(config, out)
    assert dataset.manifest is not None
    masks = dataset.manifest.items
    stems = [stem for stem in dataset.stems if not only_multi or len(masks[stem]) > 1]
    missing = {stem for stem in stems if not generate.image_path(out, stem).is_file()}
    if missing and not partial:
        wrong = f"{out}: {len(missing)} of {len(stems)} images are missing, such as {min(missing)}.png;"
        raise ValueError(f"{wrong} run generate, or measure the others with --partial")
    facts = {"data": to_plain(config.data), "descriptions": to_plain(config.global_anns_path)}
    facts["networks"] = {name: used["sha256"] for name, used in networks.used.items()}
    keys: dict[str, str] = {}
    for stem in stems:
        if stem not in missing:
            given = [VERSION, facts, file_sha256(generate.image_path(out, stem)), masks[stem]]
            keys[stem] = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    results = {}
    for stem, key in keys.items():  # what was stored for an image counts where its key is the same
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            with np.load(out / MEASURED / f"{stem}.npz", allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                features = {name.removeprefix("f_"): stored[name] for name in stored.files if name != "about"}
            if about.pop("key", None) == key:
                results[stem] = measure.ImageMetrics(stem, **about, features=features)
    is_done = set(results).__contains__
    for items in generate.pending_batches(config, dataset, list(keys), is_done, "measuring"):
        images = []
        for item in items:
            painted_u8 = read_image(generate.image_path(out, item["image_stems"])).rgb_u8
            pair_u8, masks_of_it = (generate.item_image(item), painted_u8), generate.item_masks(item)
            told = item["gt_texts"], item.get("global_text")
            images.append(measure.InpaintedImage(item["image_stems"], *pair_u8, masks_of_it, *told))
        for metrics in measure.measure_images(images, networks, pick_device(config.device)):
            if (stem := metrics.stem) in results:  # it was there
                continue
            results[stem] = metrics
            about = {name: value for name, value in vars(metrics).items() if name not in ("stem", "features")}
            arrays: dict[str, Any] = {f"f_{name}": value for name, value in metrics.features.items()}
            buffer = io.BytesIO()
            np.savez(buffer, about=np.array(json.dumps({"key": keys[stem], **about})), **arrays)
            write_atomic(out / MEASURED / f"{stem}.npz", buffer.getvalue())
    return [results[stem] for stem in keys]


def numbers(
    rows: Sequence[measure.ImageMetrics], view: str, seed: int, resamples: int, fid_resamples: int
) -> dict[str, Estimate]:
    """What was measured on all of `rows`; PSNR of the error over all their pixels.

    view: "", "masked_", or "outside_" of the rows that have an outside
    """
    rows = [row for row in rows if f"{view}squared_error" in row.numbers]
    if not rows:
        return {}
    whole, masked = (np.array([getattr(row, n) for row in rows], float) for n in ("pixels", "masked_pixels"))
    pixels = {"": whole, OUTSIDE: whole - masked}.get(view, masked)
    errors = np.array([row.numbers[f"{view}squared_error"][0] for row in rows]) * pixels

    def mean(sums: np.ndarray, counts: np.ndarray, unit: Callable[[Any], float] = float) -> Estimate:
        return with_interval(lambda i: unit(sums[i].sum() / counts[i].sum()), rows, seed, resamples)

    table = {"psnr": mean(errors, pixels, decibels)}
    for name in (*MEANS, "ssim", GLOBAL):
        if all(view + name in row.numbers for row in rows):
            values = [row.numbers[view + name] for row in rows]
            table[name] = mean(np.array([np.sum(each) for each in values]), np.array([*map(len, values)]))
    if not all(f"{view}real" in row.features for row in rows):
        return table
    real, fake = ([row.features[view + side] for row in rows] for side in ("real", "fake"))
    count = sum(map(len, real))
    for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)) if count > 1 else ():

        def between(drawn: np.ndarray, distance: Callable = distance) -> float:
            return distance(*(np.concatenate([side[i] for i in drawn]) for side in (real, fake)))

        value = between(np.arange(len(rows)))
        table[name] = {"value": value, "n": count}
        if fid_resamples > 1 and len(rows) > 2:
            low, high = centred_interval(between, value, len(rows), seed, fid_resamples)
            table[name] |= {"low": low, "high": high}
    return table


def paper_table(runs: Mapping[str, Path]) -> str:
    """The paper's table in Markdown, with our rows. runs: model of the paper -> folder with its metrics."""
    lines = ["| model | " + " | ".join(TITLES) + " |", "|---" * (1 + len(TITLES)) + "|"]
    for model, (everything, several) in PAPER_ROWS.items():
        values = [f"{a:.2f} ({b:.2f})" for a, b in zip(everything, several, strict=True)]
        lines.append(f"| {model}, published | " + " | ".join(values) + " |")
        if model not in runs:
            continue
        paths = [runs[model] / name for name in (ALL, MULTI)]
        reports = [read_json(path) if path.is_file() else {} for path in paths]
        if not any(reports):
            raise ValueError(f"{runs[model]} holds neither {ALL} nor {MULTI}; run compute for {model} first")
        for path, report in zip(paths, reports, strict=True):
            if report and "with_intervals" not in report:
                raise ValueError(f"{path}: not a report of compute")
        cells = []
        for name in COLUMNS:
            factor = 100 if name in PERCENT else 1
            tables = (report.get("with_intervals", {}) for report in reports)
            of_all, of_several = (format_estimate(table.get(name), factor=factor) for table in tables)
            cells.append(of_all + ("" if of_several == "-" else f" ({of_several})"))
        images = "; ".join(f"n = {report['images']}" for report in reports if report)
        lines.append(f"| {model}, here ({images}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
