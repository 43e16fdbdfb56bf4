"""From two images and a place to a composite: the one way for command line, notebooks and batches.

Stages: read and cut out, depth, the place if a sentence gives it (`compose.placement`), pre-processing
(`datasets.pairs`), painting (`cldm.pipeline`), paste-back (`datasets.pasteback`). Every pixel outside the
final edit mask keeps its value, and that is measured.
Sample i of `num_samples` has seed `seed + i`: its noise is that of the same seed painted alone, so the two
images are equal up to rounding; the same settings on the same machine give the same bytes. All that decides
the pixels stands in the recipe; `compose.recipe.check_unchanged` says whether that is still the same.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cldm.config import Sampling
from compose.models import Models
from compose.painters import (
    PaintedCrops,
    Work,
    choose_painter,
    folder_painter,
    paint_by_compositor,
    paint_elsewhere,
)
from compose.placement import locate, resolve_placement
from compose.recipe import make_recipe, sampling_of
from compose.settings import BIFROST, CAST, DEPTH_MODES, ComposeSettings
from compose.shadow import Shadow, in_shadow
from compose.sources import object_depth_is_estimated, read_sources
from datasets.geometry import tight_slices
from datasets.pairs import Geometry, Pair, pair_of
from datasets.relations import order_is_right
from ldm.decode import LoadedImage
from ldm.denoise import Monitor, Step
from ldm.registry.models import BUILTIN_FOLDER, resolve_model_path
from ldm.result import Samples, StageTimer, measure_drift
from ldm.settings.config import flag_name
from llava_bifrost.settings import WITH_SENTENCE

if TYPE_CHECKING:
    from compose.scene import JobScene

logger = logging.getLogger(__name__)

LEAST_VISIBLE = 0.05  # fraction of the object below which a user is warned (chosen)
DINO = Path("models/dino_vits16")


@dataclass(frozen=True, eq=False)
class Result(Samples):
    """What `compose` returns: the background with the object in it."""

    geometry: Geometry  # inputs, crop and its contents
    pair: Pair
    painted_u8: list[np.ndarray]  # n x (h, w, 3), the model's own output
    background: LoadedImage  # (H, W), as it was read
    shadow: Shadow | None = None  # of the object on the ground

    @property
    def shadow_mask(self) -> np.ndarray | None:
        """(H, W) bool, part of the edit mask; None: no shadow."""
        return None if self.shadow is None else self.shadow.region

    @property
    def fused_depth_01(self) -> np.ndarray:
        """(H, W): the depth of the background with the object in it."""
        depth_01 = self.geometry.inputs.background_depth_01.copy()
        depth_01[self.geometry.window.part] = self.geometry.native_layers.depth_01
        return depth_01

    @property
    def summary(self) -> str:
        """Visible fraction and drift in words."""
        visible = f"{100 * self.report['visible_fraction']:.0f} % of the object visible"
        if self.report.get("shadow", {}).get("pixels"):
            visible += f", {self.report['shadow']['pixels']} pixels of the ground in its shadow"
        return f"{visible}, {self.changed_outside} pixels changed outside the edit region"

    def with_placement(self, placement: dict[str, Any] | None) -> "Result":
        """With the record of how a sentence was understood in the composite that this one repeats."""
        more = {} if placement is None else {"placement": placement}
        return replace(self, recipe={**self.recipe, **more}, report={**self.report, **more})

    def best(self, settings: ComposeSettings, models: Models) -> "Result":
        """The `best` samples, the best first, by measures without a truth; all scores are in the report."""
        measure = self.geometry_scores if settings.rank_by == "geometry" else self.identity_scores
        scores = [{"seed": seed, **s} for seed, s in zip(self.seeds, measure(models), strict=True)]
        order = sorted(range(len(scores)), key=lambda index: -scores[index]["score"])[: settings.best]
        lists = {name: getattr(self, name) for name in ("images", "seeds", "painted_u8")}
        kept: dict[str, Any] = {name: [values[index] for index in order] for name, values in lists.items()}
        report = {**self.report, "drift": [self.report["drift"][index] for index in order]}
        report |= {"seeds": kept["seeds"], "ranking": {"by": settings.rank_by, "samples": scores}}
        return replace(self, **kept, report=report)

    def geometry_scores(self, models: Models) -> list[dict[str, Any]]:
        """Per sample: the depth that is estimated on it at the object against what was asked for, whether
        what hides the object is shown as nearer (None where nothing does), the change along the edge of the
        edit region in gray levels, and the score.
        """
        layers, embed = self.geometry.native_layers, self.geometry.window.embed
        visible, edit, front = embed(layers.visible), self.edit_mask, embed(layers.keep)
        outside = cv2.dilate((~(edit | front)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        rim, asked_01 = edit & outside, self.fused_depth_01
        scores = []
        for image in self.images:
            seen_01, free = models.depth.estimate(image), ~edit
            if free.any() and np.ptp(seen_01[free]) > 0:  # in the units of the known depth
                slope, shift = np.polyfit(seen_01[free], asked_01[free], 1)
                seen_01 = slope * seen_01 + shift
            error = float(np.abs(seen_01 - asked_01)[visible].mean())
            order = order_is_right(seen_01, visible, front, False)
            change = np.abs(image.own_u8.astype(np.int16) - self.background.own_u8)[rim]
            seam = float(change.mean()) if rim.any() else 0.0
            score = -error - seam / 255 - (order is False)
            scores.append({"depth_error": error, "order": order, "seam": seam, "score": score})
        return scores

    def identity_scores(self, models: Models) -> list[dict[str, Any]]:
        """Per sample: the cosine of image features of the object's image and the object in it, the score."""
        inputs, layers = self.geometry.inputs, self.geometry.native_layers
        visible = self.geometry.window.embed(layers.visible)
        shown = [(inputs.reference_u8, inputs.reference_mask)]
        shown += [(each.rgb_u8, visible) for each in self.images]
        cuts = [np.where(mask[..., None], image, np.uint8(255))[tight_slices(mask)] for image, mask in shown]
        reference, *samples = similarity_network(models).images(cuts)
        return [{"similarity": float(each @ reference), "score": float(each @ reference)} for each in samples]


def ignored_options(settings: ComposeSettings, sampling: Sampling) -> list[str]:
    """One sentence for every option that was given and has no effect."""
    notes = []
    if settings.depth is not None and settings.plain_mode not in DEPTH_MODES:
        notes.append(f"--depth has no effect: mode {settings.mode} keeps the depth of the background")
    elif settings.depth is not None and settings.compat == "anydoor":
        notes.append("--depth hides nothing: --compat anydoor puts the object in front of everything")
    if settings.shadow == CAST != settings.shadow_there:
        notes.append(f"--shadow has no effect: mode {settings.mode} keeps the depth of the background")
    if settings.erase not in ("object", settings.erases):
        notes.append("--erase has no effect: it belongs to --mode replace without target mask and --compat")
    if settings.strength is not None and sampling.init == "noise":
        notes.append("--strength has no effect: the start is noise (--init paste uses it)")
    if settings.compat is not None and sampling.detail > 0:
        notes.append("--detail has no effect: --compat pastes the model's own crop")
    if settings.instruction is None:
        given = [name for name, default in WITH_SENTENCE.items() if getattr(settings, name) != default]
        notes += [f"{flag_name(name)} has no effect without --instruction" for name in given]
    return notes


def compose(
    settings: ComposeSettings, models: Models, *, on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None, progress: bool = True, stage: "JobScene | None" = None,
) -> Result:  # fmt: skip
    """Put the object into the background. Reads files, writes none; cheap checks run first.

    stage: an image under work, in the place of the settings' background and its depth

    Raises ValueError for invalid user input, `ldm.denoise.Cancelled` when `cancelled` says so.
    """
    return compose_prepared([prepare(settings, models, stage)], Monitor(on_step, cancelled, progress))[0]


def compose_prepared(works: Sequence[Work], monitor: Monitor) -> list[Result]:
    """What comes after `prepare`, for one work or several with the same `group`, which share batches."""
    if works[0].settings.painter == BIFROST:
        paintings = paint_by_compositor(works, monitor)
    else:
        paintings = [paint_elsewhere(work, monitor.cancelled) for work in works]
    return [finish(work, painting) for work, painting in zip(works, paintings, strict=True)]


def prepare(settings: ComposeSettings, models: Models, stage: "JobScene | None" = None) -> Work:
    """All that comes before the painting."""
    timer = StageTimer()
    sampling, options = sampling_of(settings, models)
    if (painter := folder_painter(settings, models)) is not None:
        options = replace(options, size=(painter.size, painter.size))
    if (trained := models.config.pair.hf_mode) != options.hf_mode:  # only --compat changes it
        text = "--compat %s shows the model hf_mode %s, but it was trained with %s: expect a poor object"
        logger.warning(text, settings.compat, options.hf_mode, trained)
    for note in ignored_options(settings, sampling):
        logger.warning("%s", note)
    if settings.best is not None and settings.rank_by == "identity":
        similarity_network(models)  # before any work
    with timer.stage("read"):
        sources = read_sources(settings, stage, models.recent)
    settings = choose_painter(settings, models, sources.background)
    settings, depth_01 = settings.in_fractions(sources.background.size), sources.depth_01
    with timer.stage("depth"):
        if depth_01 is None:
            estimate = partial(models.depth.estimate, sources.background)
            depth_01 = models.recent.once(estimate, "depth", settings.background)
        if object_depth_is_estimated(settings):
            sources = replace(sources, object_depth_01=models.depth.estimate(sources.item))
    placement = None
    if settings.instruction is not None:
        with timer.stage("locate"):
            placement = locate(settings, models, sources, depth_01)
    with timer.stage("prepare"):
        settings, geometry, decided = resolve_placement(settings, placement, sources, depth_01, options)
        geometry, shadow = in_shadow(settings, geometry, sources, models)
        pair, recipe = pair_of(geometry), make_recipe(settings, models, decided.get("placement"))
    return Work(geometry, pair, sources, settings, models, timer, sampling, recipe, decided, shadow)


def finish(work: Work, painting: PaintedCrops) -> Result:
    """What was painted, with recipe and report."""
    settings, models, geometry, shadow = work.settings, work.models, work.geometry, work.shadow
    with work.timer.stage("paste back"):
        stitched, before_u8 = painting.stitched, work.sources.background.own_u8
        keep, inside, drift = geometry.native_layers.keep, geometry.window.part, []
        shaded = None if shadow is None else shadow.report(settings.shadow, stitched[0].edit_mask)
        for sample in stitched:
            allowed = sample.edit_mask
            if (allowed[inside] & keep).any():  # as published
                allowed = allowed.copy()
                allowed[inside] &= ~keep
            if shadow is not None:
                allowed[shadow.cut.part] |= shadow.darkening_01 > 0
            drift.append(measure_drift(before_u8, sample.result_u8, allowed))
    if (visible := geometry.native_layers.visible_fraction) < LEAST_VISIBLE:
        message = "nearer objects hide all but %.1f %% of the object: raise --depth, or move it"
        logger.warning(message, 100 * visible)
    measured = {"visible_fraction": visible, "drift": drift, "seeds": work.seeds}
    measured["device"] = str(models.device)
    if shadow is not None:
        measured["shadow"] = shaded
    report = {**work.decided, **measured, **painting.report, "seconds": work.timer.report()}
    about = work.recipe, report, geometry, work.pair, painting.painted_u8, work.sources.background
    images = [each.result for each in stitched]
    all_samples = Result(images, stitched[0].edit_mask, work.seeds, *about, shadow)
    return all_samples if settings.best is None else all_samples.best(settings, models)


def similarity_network(models: Models) -> Any:
    """What --rank-by identity compares by: DINO, or the ImageNet network of the built-in detector."""
    from ldm.experts.builtin import Lite0Features
    from ldm.metrics.clip import Dino

    for folder, load in ((DINO, Dino.load), (BUILTIN_FOLDER, Lite0Features.load)):
        if (place := resolve_model_path(folder)).is_dir():
            return models.once(place, load)
    pull = "python -m ldm.registry pull"
    raise ValueError(f"--rank-by identity needs an image network: {pull} dino-vits16, or builtin-detector")
