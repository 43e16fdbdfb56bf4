"""Fill several masks of an image in one pass, each with its own prompt.

    pipe = load_inpainter("assets/tiny/inpainter")
    result = paint(image_u8, [(mask_a, "a red cube"), (mask_b, "a green ball")], pipe, seed=0)

Legend: H W pixels of the user's image, h w pixels of the canvas.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.masks import feather_inside
from inpainting.models.text_to_image.config import DEFAULTS, PaintOptions
from inpainting.models.text_to_image.load import Inpainter, weights_of
from inpainting.models.text_to_image.sample import Batch, sample_all
from inpainting.prompts import check_masks
from inpainting.tokens import TokenPlan, plan_shared, plan_tokens
from ldm.decode import LoadedImage
from ldm.denoise import Monitor
from ldm.device import FasterAttention
from ldm.images import read_image, read_mask, resize, to_pm1
from ldm.result import Samples, StageTimer, library_versions, measure_drift
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

PNDM = "PNDMScheduler"  # where the model folder names none
LONGEST = 2.0  # longer side of the canvas in units of the resolution


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    mask: np.ndarray  # (H, W) bool
    prompt: str
    negative: str = ""  # what it shall not show

    def __post_init__(self) -> None:
        """A path or a PIL image as mask is read."""
        if not isinstance(self.mask, np.ndarray):
            object.__setattr__(self, "mask", read_mask(self.mask))


@dataclass(frozen=True, eq=False)
class PaintJob:
    image_u8: np.ndarray  # (H, W, 3)
    regions: Sequence[RegionPrompt | tuple[np.ndarray, str]]
    seeds: Sequence[int] = (0,)
    source: LoadedImage | None = None  # what the image was read from, for its transparency and profile

    def prepare(self, pipe: Inpainter, options: PaintOptions) -> "PreparedJob":
        """Check a job and bring it to painting size; prompts that do not fit are named in a warning."""
        image_u8 = self.image_u8
        if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[2] != 3:
            raise ValueError(f"the image must be RGB (h, w, 3) uint8, got {image_u8.dtype} {image_u8.shape}")
        if not self.regions:
            raise ValueError("nothing to paint: give at least one (mask, prompt)")
        regions = [one if isinstance(one, RegionPrompt) else RegionPrompt(*one) for one in self.regions]
        masks = [region.mask for region in regions]
        check_masks(image_u8, masks)
        if not self.seeds:
            raise ValueError("nothing to paint: no seed given")
        size, layout = int(options.resolution or pipe.resolution), str(options.layout)
        canvas = make_canvas(image_u8, masks, size, pipe.latent_space.factor, layout)

        def plan(texts: list[str]) -> TokenPlan:
            return plan_tokens(texts, pipe.tokenizer, encoding=str(options.encoding), regions=options.rca)

        prompts = plan([region.prompt for region in regions])
        for cut in prompts.cuts:
            read = cut.kept, cut.lost
            log.warning("prompt %d is too long: the model reads %r, not %r", cut.index + 1, *read)
        if any(region.negative for region in regions):
            negative = plan([region.negative or options.negative for region in regions])
        else:
            negative = plan_shared(options.negative, pipe.tokenizer)
        return PreparedJob(self, regions, prompts, negative, *canvas)


@dataclass(frozen=True, eq=False)
class PaintResult(Samples):
    regions: list[RegionPrompt]

    @property
    def image_u8(self) -> np.ndarray:
        """The first sample, (H, W, 3)."""
        return self.images_u8[0]


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """A checked job at painting size."""

    job: PaintJob
    regions: list[RegionPrompt]
    plan: TokenPlan
    negative: TokenPlan
    image_pm1: Tensor  # (3, h, w)
    masks: Tensor  # (r, h, w) bool
    inner_hw: tuple[int, int]  # size without padding (top left)

    def pasted(
        self, painted_u8: Iterator[np.ndarray], options: PaintOptions
    ) -> tuple[list[LoadedImage], np.ndarray]:
        """Canvases, one a seed, at the image's own size; outside the mask (H, W), also given, bytes stay."""
        image, (h, w) = self.job.image_u8, self.inner_hw
        source, size = self.job.source or LoadedImage(image), (image.shape[0], image.shape[1])
        edit = np.logical_or.reduce([region.mask for region in self.regions])
        place = edit if options.paste_back else edit | True
        weight_01 = feather_inside(place, options.feather * min(size) * options.paste_back)
        how = "cubic" if size[0] > h or size[1] > w else "area"
        canvases = islice(painted_u8, len(self.job.seeds))
        wholes = (resize(canvas_u8[:h, :w], size, how=how) for canvas_u8 in canvases)
        return [source.painted(whole_u8, weight_01, place) for whole_u8 in wholes], edit

    def finish(
        self, painted_u8: Iterator[np.ndarray], pipe: Inpainter, options: PaintOptions, timer: StageTimer
    ) -> PaintResult:
        """The result with its recipe and report; what changed outside the masks is measured."""
        image, regions = self.job.image_u8, self.regions
        source, seeds = self.job.source or LoadedImage(image), list(self.job.seeds)
        with timer.stage("paste back"):
            images, edit = self.pasted(painted_u8, options)
        report = {
            "drift": [measure_drift(source.own_u8, each.own_u8, edit) for each in images],
            "seeds": seeds,
            "cuts": [to_plain(cut) for cut in self.plan.cuts],
            "canvas": list(self.masks.shape[1:]),
            "mask_pixels": [int(region.mask.sum()) for region in regions],
            "device": str(pipe.device),
            "seconds": timer.report(),
        }
        given = [{"prompt": each.prompt, "negative": each.negative, "mask": array_sha256(each.mask)}
                 for each in regions]  # fmt: skip
        recipe = {
            "command": "paint", "image": array_sha256(image), "regions": given, "options": to_plain(options),
            "model": {"name": pipe.config.name, "folder": pipe.folder, "lora": pipe.lora},
            "weights": weights_of(pipe),
            "machine": {"device": pipe.device.type, "dtype": str(pipe.dtype).removeprefix("torch.")},
            "versions": library_versions()}  # fmt: skip
        return PaintResult(images, edit, seeds, recipe, report, regions)


def pair_masks(
    masks: Sequence[np.ndarray], prompts: Sequence[str], negatives: Sequence[str] = ()
) -> list[RegionPrompt]:
    """Masks and prompts in the same order -> regions; their numbers must agree."""
    if not masks or not prompts:
        raise ValueError(f"nothing to paint: got {len(masks)} masks and {len(prompts)} prompts")
    if len(masks) != len(prompts):
        more = "prompts than masks" if len(prompts) > len(masks) else "masks than prompts"
        raise ValueError(f"more {more}: {len(prompts)} prompts, {len(masks)} masks; each mask has one prompt")
    if negatives and len(negatives) != len(masks):
        raise ValueError(f"{len(negatives)} negative prompts for {len(masks)} masks; give one each, or none")
    negatives = negatives or [""] * len(masks)
    return [RegionPrompt(*each) for each in zip(masks, prompts, negatives, strict=True)]


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
    ValueError names the mask that does not fit.
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
    prepared = [job.prepare(pipe, options) for job in jobs]
    batches: dict[torch.Size, list[int]] = defaultdict(list)  # by (h, w)
    for index, job in enumerate(prepared):
        batches[job.masks.shape[1:]].append(index)
    results: dict[int, PaintResult] = {}
    for indices in batches.values():
        group = [prepared[index] for index in indices]
        timer = StageTimer()
        with timer.stage("paint"), FasterAttention():
            remaining = iter(sample_all(batch_of(group), pipe, options, monitor))
        for index in indices:
            results[index] = prepared[index].finish(remaining, pipe, options, timer)
    return [results[index] for index in range(len(jobs))]


def batch_of(jobs: Sequence[PreparedJob]) -> Batch:
    """Jobs of one painting size together; images with fewer regions get empty ones."""
    masks = torch.nn.utils.rnn.pad_sequence([job.masks for job in jobs], batch_first=True)
    return Batch(
        image_pm1=torch.stack([job.image_pm1 for job in jobs]),
        masks=masks,
        union=masks.any(dim=1, keepdim=True),
        plans=[job.plan for job in jobs],
        negatives=[job.negative for job in jobs],
        rows=[row for row, job in enumerate(jobs) for _ in job.job.seeds],
        seeds=[seed for job in jobs for seed in job.job.seeds],
    )


def resolve_options(pipe: Inpainter, options: PaintOptions = DEFAULTS) -> PaintOptions:
    """The user's options on top of what the model recommends; no field is None."""
    recommended: dict[str, Any] = {**vars(pipe.config.sampling), "resolution": pipe.resolution}
    recommended |= {"layout": pipe.config.layout, "encoding": pipe.config.encoding}
    recommended["scheduler"] = recommended["scheduler"] or pipe.scheduler_config.get("_class_name", PNDM)
    missing = {name: value for name, value in recommended.items() if getattr(options, name) is None}
    return replace(options, **missing)


def make_canvas(
    image_u8: np.ndarray, masks: Sequence[np.ndarray], resolution: int, factor: int, layout: str = "coverage"
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Bring image (H, W, 3) and masks (H, W) to painting size: the shorter side is `resolution`, or less.

    factor: pixels per latent;  layout: nearest samples masks at one point, coverage keeps what they touch
    returns: the last three fields of `PreparedJob`
    """
    high, wide = image_u8.shape[:2]
    scale = min(resolution / min(high, wide), LONGEST * resolution / max(high, wide))
    inner = max(1, round(high * scale)), max(1, round(wide * scale))
    padding = [(0, -side % factor) for side in inner]
    image = np.pad(resize(image_u8, inner), [*padding, (0, 0)], mode="edge")
    if layout == "nearest" or not (inner[0] < high or inner[1] < wide):
        fitted = [resize(mask.astype(np.uint8), inner, how="nearest") > 0 for mask in masks]
    else:
        fitted = [resize(mask.astype(np.float32), inner, how="area") > 1e-6 for mask in masks]
    padded = np.stack([np.pad(mask, padding) for mask in fitted])
    return to_pm1(image), torch.from_numpy(padded), inner


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of shape and values."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
