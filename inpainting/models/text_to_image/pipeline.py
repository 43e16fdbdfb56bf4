"""Fill several masks of an image in one pass, each with its own prompt.

    pipe = load_inpainter("assets/tiny/inpainter")
    result = paint(image_u8, [(mask_a, "a red cube"), (mask_b, "a green ball")], pipe, seed=0)
    write_png("out.png", result.image_u8)

All regions are painted together: one union mask, one UNet call per step, and cross-attention that lets each
pixel read the prompts of its own regions only. Pixels outside the masks keep their bytes; that is measured.

Legend: H W pixels of the user's image, h w pixels of the canvas.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inpainting.models.text_to_image.canvas import Canvas, Region, as_regions, make_canvas, paste, whole
from inpainting.models.text_to_image.card import DEFAULTS, PaintOptions, resolved
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.recipe import make_recipe
from inpainting.models.text_to_image.sample import Batch, sample
from inpainting.tokens import TokenPlan, plan_shared, plan_tokens
from ldm.denoise import Step
from ldm.result import StageTimer, measure_drift
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job:
    """One image, what to paint into it, and a seed for each sample of it."""

    image_u8: np.ndarray  # (H, W, 3)
    regions: Sequence[Region | tuple[np.ndarray, str]]
    seeds: Sequence[int] = (0,)


@dataclass(frozen=True, eq=False)
class Result:
    """What painting one image gives. Sample i has seed `seeds[i]`."""

    images_u8: list[np.ndarray]  # n x (H, W, 3), the size of the image
    edit_mask: np.ndarray  # (H, W) bool, what was allowed to change
    seeds: list[int]
    regions: list[Region]
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured: drift, seconds, shortened prompts

    @property
    def image_u8(self) -> np.ndarray:
        """The first sample, (H, W, 3)."""
        return self.images_u8[0]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked job at painting size."""

    job: Job
    regions: list[Region]
    canvas: Canvas
    plan: TokenPlan
    negative: TokenPlan


def paint(
    image_u8: np.ndarray,
    regions: Sequence[Region | tuple[np.ndarray, str]],
    pipe: Inpainter,
    seed: int = 0,
    options: PaintOptions = DEFAULTS,
    *,
    samples: int = 1,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: bool = True,
) -> Result:
    """Paint each region of an image (H, W, 3) of any size with its own prompt.

    regions: (mask (H, W) bool, prompt) pairs, or `Region`s, which may carry negative prompts; where masks
             overlap, pixels read both prompts
    samples: images to make; sample i has seed + i and is the image of that seed painted alone
    Raises ValueError for what a user can mend, `ldm.denoise.Cancelled` when `cancelled` says so.
    """
    job = Job(image_u8, regions, range(seed, seed + samples))
    return paint_all([job], pipe, options, on_step=on_step, cancelled=cancelled, progress=progress)[0]


def paint_all(
    jobs: Sequence[Job],
    pipe: Inpainter,
    options: PaintOptions = DEFAULTS,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: bool = True,
) -> list[Result]:
    """Paint several images; those of one painting size go through the model together.

    Every sample has its own noise, so it is the same image (up to rounding) in any batch.
    """
    chosen = options_for(pipe, options)
    prepared = [prepare(job, pipe, chosen) for job in jobs]
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, one in enumerate(prepared):
        batches[one.canvas.size].append(index)
    results: dict[int, Result] = {}
    for indices in batches.values():
        timer, several = StageTimer(), [prepared[index] for index in indices]
        with timer.stage("paint"):
            results_u8 = iter(
                sample(
                    as_batch(several),
                    pipe,
                    chosen,
                    on_step=on_step,
                    cancelled=cancelled,
                    progress=progress,
                )
            )
        for index, one in zip(indices, several, strict=True):
            results[index] = finish(one, results_u8, pipe, chosen, timer)
    return [results[index] for index in range(len(jobs))]


def options_for(pipe: Inpainter, options: PaintOptions = DEFAULTS) -> PaintOptions:
    """The user's options on top of what the model recommends; none is left open."""
    named = pipe.scheduler_config.get("_class_name", "PNDMScheduler")
    return resolved(options, pipe.card, named, pipe.resolution)


def prepare(job: Job, pipe: Inpainter, options: PaintOptions) -> Prepared:
    """Check a job and bring it to painting size; prompts that do not fit are named in a warning."""
    regions = as_regions(job.image_u8, job.regions)
    if not job.seeds:
        raise ValueError("nothing to paint: no seed given")
    canvas = make_canvas(
        job.image_u8,
        [region.mask for region in regions],
        int(options.resolution or pipe.resolution),
        pipe.latent_space.factor,
        str(options.layout),
    )
    plan = _plan([region.prompt for region in regions], pipe, options)
    for cut in plan.cuts:
        log.warning("prompt %d is too long: the model reads %r, not %r", cut.index + 1, cut.kept, cut.lost)
    if any(region.negative for region in regions):
        negative = _plan([region.negative or options.negative for region in regions], pipe, options)
    else:
        negative = plan_shared(options.negative, pipe.tokenizer)
    return Prepared(job, regions, canvas, plan, negative)


def _plan(texts: list[str], pipe: Inpainter, options: PaintOptions) -> TokenPlan:
    return plan_tokens(texts, pipe.tokenizer, encoding=str(options.encoding), regions=options.rca)


def as_batch(several: Sequence[Prepared]) -> Batch:
    """Prepared jobs of one size as tensors; images with fewer regions get empty ones."""
    most = max(len(one.regions) for one in several)
    masks = torch.zeros(len(several), most, *several[0].canvas.size, dtype=torch.bool)
    for row, one in zip(masks, several, strict=True):
        row[: len(one.regions)] = one.canvas.masks
    return Batch(
        image_pm1=torch.stack([one.canvas.image_pm1 for one in several]),
        masks=masks,
        union=masks.any(dim=1, keepdim=True),
        plans=[one.plan for one in several],
        negatives=[one.negative for one in several],
        rows=[index for index, one in enumerate(several) for _ in one.job.seeds],
        seeds=[seed for one in several for seed in one.job.seeds],
    )


def finish(
    one: Prepared, painted: Iterator[np.ndarray], pipe: Inpainter, options: PaintOptions, timer: StageTimer
) -> Result:
    """Back to the image's own size; outside the masks every byte stays, and that is measured."""
    image, seeds = one.job.image_u8, list(one.job.seeds)
    edit = np.logical_or.reduce([region.mask for region in one.regions])
    with timer.stage("paste back"):
        results_u8 = [whole_or_pasted(image, next(painted), one.canvas, edit, options) for _ in seeds]
    drift = [measure_drift(image, result_u8, edit) for result_u8 in results_u8]
    report = {
        "drift": drift,
        "seeds": seeds,
        "cuts": [to_plain(cut) for cut in one.plan.cuts],
        "canvas": list(one.canvas.size),
        "mask_pixels": [int(region.mask.sum()) for region in one.regions],
        "device": str(pipe.device),
        "seconds": timer.report(),
    }
    recipe = make_recipe(image, one.regions, pipe, options)
    return Result(results_u8, edit, seeds, one.regions, recipe, report)


def whole_or_pasted(
    image_u8: np.ndarray, painted_u8: np.ndarray, canvas: Canvas, edit: np.ndarray, options: PaintOptions
) -> np.ndarray:
    """(H, W, 3): the image with its masks painted, or without paste_back all of the model's image."""
    if not options.paste_back:
        return whole(image_u8, painted_u8, canvas)
    return paste(image_u8, painted_u8, canvas, edit, options.feather)
