"""Fill several masks of an image in one pass, each with its own prompt.

    pipe = load_inpainter("assets/tiny/inpainter")
    result = paint(image_u8, [(mask_a, "a red cube"), (mask_b, "a green ball")], pipe, seed=0)
    write_png("out.png", result.image_u8)

All regions are painted together: one union mask, one UNet call per step, and cross-attention that lets each
pixel read the prompts of its own regions only. Pixels outside the masks keep their bytes; that is measured.

Legend: H W pixels of the user's image, h w pixels of the canvas.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from datasets.masks import feather_inside
from inpainting.models.text_to_image.canvas import Canvas, RegionPrompt, make_canvas, whole
from inpainting.models.text_to_image.config import DEFAULTS, PaintOptions
from inpainting.models.text_to_image.load import Inpainter, weights_of
from inpainting.models.text_to_image.sample import Batch, sample
from inpainting.prompts import check_masks
from inpainting.tokens import TokenPlan, plan_shared, plan_tokens
from ldm.decode import LoadedImage
from ldm.denoise import AT_ONCE, Monitor
from ldm.images import read_image
from ldm.result import StageTimer, library_versions, measure_drift
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PaintJob:
    """One image, what to paint into it, and a seed for each sample of it."""

    image_u8: np.ndarray  # (H, W, 3)
    regions: Sequence[RegionPrompt | tuple[np.ndarray, str]]
    seeds: Sequence[int] = (0,)
    source: LoadedImage | None = None  # what the image was read from, for its transparency and profile


@dataclass(frozen=True, eq=False)
class PaintResult:
    """What painting one image gives. Sample i has seed `seeds[i]`."""

    images: list[LoadedImage]  # n, of the size and in the colours of the image
    edit_mask: np.ndarray  # (H, W) bool, what was allowed to change
    seeds: list[int]
    regions: list[RegionPrompt]
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured: drift, seconds, shortened prompts

    @property
    def images_u8(self) -> list[np.ndarray]:
        """n x (H, W, 3)"""
        return [image.own_u8 for image in self.images]

    @property
    def image_u8(self) -> np.ndarray:
        """The first sample, (H, W, 3)."""
        return self.images_u8[0]


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """A checked job at painting size."""

    job: PaintJob
    regions: list[RegionPrompt]
    canvas: Canvas
    plan: TokenPlan
    negative: TokenPlan


def paint(
    image: np.ndarray | LoadedImage,
    regions: Sequence[RegionPrompt | tuple[np.ndarray, str]],
    pipe: Inpainter,
    seed: int = 0,
    options: PaintOptions = DEFAULTS,
    *,
    samples: int = 1,
    progress: bool = True,
) -> PaintResult:
    """Paint each region of an image (H, W, 3) of any size, or of a file, with its own prompt.

    image:   array, path, PIL image, or what `read_image` gives; masks likewise
    regions: (mask (H, W) bool, prompt) pairs, or `RegionPrompt`s, which may carry negative prompts; where
             masks overlap, pixels read both prompts
    samples: images to make; sample i has seed + i and is the image of that seed painted alone
    Raises ValueError for invalid input.
    """
    if not isinstance(image, np.ndarray | LoadedImage):
        image = read_image(image)
    source = image if isinstance(image, LoadedImage) else None
    image_u8 = image.rgb_u8 if isinstance(image, LoadedImage) else image
    job = PaintJob(image_u8, regions, range(seed, seed + samples), source)
    return paint_all([job], pipe, options, Monitor(progress=progress))[0]


def paint_all(
    jobs: Sequence[PaintJob],
    pipe: Inpainter,
    options: PaintOptions = DEFAULTS,
    monitor: Monitor = Monitor(),  # noqa: B008
) -> list[PaintResult]:
    """Paint several images; those of one painting size go through the model together.

    Every sample has its own noise, so it is the same image (up to rounding) in any batch.
    Raises `ldm.denoise.Cancelled` when the monitor cancels.
    """
    options = resolve_options(pipe, options)
    prepared = [prepare_job(job, pipe, options) for job in jobs]
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, job in enumerate(prepared):
        batches[job.canvas.size].append(index)
    results: dict[int, PaintResult] = {}
    for indices in batches.values():
        group = [prepared[index] for index in indices]
        # Images with fewer regions get empty ones.
        masks = torch.nn.utils.rnn.pad_sequence([each.canvas.masks for each in group], batch_first=True)
        batch = Batch(
            image_pm1=torch.stack([each.canvas.image_pm1 for each in group]),
            masks=masks,
            union=masks.any(dim=1, keepdim=True),
            plans=[each.plan for each in group],
            negatives=[each.negative for each in group],
            rows=[row for row, each in enumerate(group) for _ in each.job.seeds],
            seeds=[seed for each in group for seed in each.job.seeds],
        )
        timer = StageTimer()
        with timer.stage("paint"):
            images_u8 = []
            for start in range(0, len(batch.rows), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                several = replace(batch, rows=batch.rows[part], seeds=batch.seeds[part])
                images_u8 += sample(several, pipe, options, monitor)
        remaining = iter(images_u8)
        for index in indices:
            results[index] = finish_job(prepared[index], remaining, pipe, options, timer)
    return [results[index] for index in range(len(jobs))]


def resolve_options(pipe: Inpainter, options: PaintOptions = DEFAULTS) -> PaintOptions:
    """The user's options on top of what the model recommends; no field is None."""
    sampling = pipe.config.sampling
    recommended: dict[str, Any] = {
        "scheduler": sampling.scheduler or pipe.scheduler_config.get("_class_name", "PNDMScheduler"),
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "layout": pipe.config.layout,
        "encoding": pipe.config.encoding,
        "resolution": pipe.resolution,
    }
    missing = {name: value for name, value in recommended.items() if getattr(options, name) is None}
    return replace(options, **missing)


def prepare_job(job: PaintJob, pipe: Inpainter, options: PaintOptions) -> PreparedJob:
    """Check a job and bring it to painting size; prompts that do not fit are named in a warning.

    ValueError names the mask that does not fit the image.
    """
    image_u8 = job.image_u8
    if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[2] != 3:
        raise ValueError(f"the image must be RGB (h, w, 3) uint8, got {image_u8.dtype} {image_u8.shape}")
    if not job.regions:
        raise ValueError("nothing to paint: give at least one (mask, prompt)")
    regions = [given if isinstance(given, RegionPrompt) else RegionPrompt(*given) for given in job.regions]
    masks = [region.mask for region in regions]
    check_masks(image_u8, masks)
    if not job.seeds:
        raise ValueError("nothing to paint: no seed given")
    size, layout = int(options.resolution or pipe.resolution), str(options.layout)
    canvas = make_canvas(image_u8, masks, size, pipe.latent_space.factor, layout)

    def plan(texts: list[str]) -> TokenPlan:
        return plan_tokens(texts, pipe.tokenizer, encoding=str(options.encoding), regions=options.rca)

    prompts = plan([region.prompt for region in regions])
    for cut in prompts.cuts:
        log.warning("prompt %d is too long: the model reads %r, not %r", cut.index + 1, cut.kept, cut.lost)
    if any(region.negative for region in regions):
        negative = plan([region.negative or options.negative for region in regions])
    else:
        negative = plan_shared(options.negative, pipe.tokenizer)
    return PreparedJob(job, regions, canvas, prompts, negative)


def finish_job(
    prepared: PreparedJob,
    painted_u8: Iterator[np.ndarray],
    pipe: Inpainter,
    options: PaintOptions,
    timer: StageTimer,
) -> PaintResult:
    """Back to the image's own size; outside the masks every byte stays, and that is measured.

    painted_u8: gives one canvas per seed;  without paste_back all of the model's image is the result
    """
    image, canvas, regions = prepared.job.image_u8, prepared.canvas, prepared.regions
    source = prepared.job.source or LoadedImage(image)
    seeds = list(prepared.job.seeds)
    edit = np.logical_or.reduce([region.mask for region in regions])
    with timer.stage("paste back"):
        place, width = (edit, options.feather * min(edit.shape)) if options.paste_back else (edit | True, 0.0)
        weight_01 = feather_inside(place, width)
        images = [source.painted(whole(image, next(painted_u8), canvas), weight_01, place) for _ in seeds]
    report = {
        "drift": [measure_drift(source.own_u8, each.own_u8, edit) for each in images],
        "seeds": seeds,
        "cuts": [to_plain(cut) for cut in prepared.plan.cuts],
        "canvas": list(canvas.size),
        "mask_pixels": [int(region.mask.sum()) for region in regions],
        "device": str(pipe.device),
        "seconds": timer.report(),
    }
    recipe = {
        "command": "paint",
        "image": array_sha256(image),
        "regions": [
            {"prompt": region.prompt, "negative": region.negative, "mask": array_sha256(region.mask)}
            for region in regions
        ],
        "options": to_plain(options),
        "model": {"name": pipe.config.name, "folder": pipe.folder, "lora": pipe.lora},
        "weights": weights_of(pipe),
        "machine": {"device": pipe.device.type, "dtype": str(pipe.dtype).removeprefix("torch.")},
        "versions": library_versions(),
    }
    return PaintResult(images, edit, seeds, regions, recipe, report)


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of shape and values."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
