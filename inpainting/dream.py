"""From an image and masks to a finished image: what could be behind each mask is written, then painted.

    python -m inpainting.dream --image painting.jpg --masks a.png b.png --prompts "" "a red cube" \\
        --out outputs/dreamed.png

A mask without prompt gets one from a language model that sees the rest of the image (paper section 3);
given prompts are kept. Writes a PNG that carries its recipe, a JSON report, and a sheet with the prompts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from inpainting.data.steps.describe import PRECISIONS
from inpainting.dream_prompts import Prompts, completed, write_missing
from inpainting.dream_sheet import dream_sheet
from inpainting.models.image_to_text.prompter import FULL, TINY, default_folder, find_files
from inpainting.models.image_to_text.questions import colors_of_masks
from inpainting.models.image_to_text.writer import GREEDY, Decoding, PromptWriter
from inpainting.models.text_to_image.canvas import paired
from inpainting.models.text_to_image.card import DEFAULTS, PaintOptions
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import Result, paint
from inpainting.paint import (
    PaintSettings,
    load_model,
    model_folder,
    output_paths,
    save_samples,
    several_app,
    sheet_path,
    tell,
)
from ldm.images import read_image, read_mask, write_png
from ldm.result import StageTimer
from ldm.settings.cli import command, run_module
from ldm.settings.config import setting, to_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DreamSettings(PaintSettings):
    """An image, its regions, who writes their prompts, how to paint them and where the result goes."""

    prompts: tuple[str, ...] = setting(
        (), help="known prompts in the order of the masks; an empty or missing one is written"
    )
    out: Path = setting(
        Path("outputs/dreamed.png"), help="PNG to write; with several samples a number is added to its name"
    )
    prompter: Path | None = setting(
        None,
        help=f"prompt writer: model folder, or folder of its adapter; without it {FULL.as_posix()} if there, "
        f"else {TINY.as_posix()}",
    )
    adapter: Path | None = setting(None, help="adapter of the prompt writer, where --prompter is its model")
    precision: str = setting("auto", choices=PRECISIONS, help="prompt writer in 4 bits as published, or full")
    constrained: bool = setting(
        True, help="one closed, non-empty prompt per mask is certain; off: decoded as published"
    )
    temperature: float = setting(
        0.0, low=0.0, high=5.0, help="0: the most probable words; above: drawn with --seed"
    )
    longest: int | None = setting(
        None, low=1, high=512, help="most tokens of one prompt; without it the model's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoding  # noqa: B018 -- refuses what does not go together

    @property
    def decoding(self) -> Decoding:
        """How prompts are decoded."""
        return Decoding(self.constrained, self.temperature, self.seed, self.longest)


@dataclass(frozen=True, eq=False)
class Dream:
    """What `dream` gives: the prompts, and the images painted after them."""

    prompts: Prompts
    result: Result

    @property
    def image_u8(self) -> np.ndarray:
        """The first sample, (h, w, 3)."""
        return self.result.image_u8

    def sheet(self, image_u8: np.ndarray) -> np.ndarray:
        """Before, masks and after with the prompts, (h, w, 3) uint8. image_u8: the image before."""
        masks, seeds = [region.mask for region in self.result.regions], self.result.seeds
        titles = ["after"] if len(seeds) == 1 else [f"after, seed {seed}" for seed in seeds]
        return dream_sheet(image_u8, masks, self.prompts, self.result.images_u8, titles)


def dream(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    writer: PromptWriter | None,
    pipe: Inpainter,
    prompts: Sequence[str] = (),
    seed: int = 0,
    options: PaintOptions = DEFAULTS,
    *,
    decoding: Decoding = GREEDY,
    negatives: Sequence[str] = (),
    samples: int = 1,
    progress: bool = True,
) -> Dream:
    """Write the missing prompts of the masks (h, w) bool of an image (h, w, 3) uint8, then paint all masks.

    writer: None when no prompt is missing. prompts: known ones in the order of the masks, "" or missing where
    one is to be written. Other arguments: `PromptWriter.write` and `paint`. ValueError for what does not fit.
    """
    found = write_missing(image_u8, masks, prompts, writer, decoding)
    regions = paired(list(masks), found.texts, negatives)
    return Dream(found, paint(image_u8, regions, pipe, seed, options, samples=samples, progress=progress))


def run_dream(settings: DreamSettings) -> None:
    """Write a prompt for every mask that has none, and fill the masks, each with its own prompt.

    Writes a PNG that carries its recipe, a JSON report beside it, and a sheet of before, masks and after with
    the prompts.
    """
    paths, timer = output_paths(settings), StageTimer()
    known = completed(settings.prompts, len(settings.masks))
    image = read_image(settings.image)
    masks = [read_mask(path, size=image.size) for path in settings.masks]
    paired(masks, known, settings.negatives)
    model_folder(settings)
    with timer.stage("write"):
        prompts, facts = write_prompts(settings, image.rgb_u8, masks, known)
    result = paint(
        image.rgb_u8,
        paired(masks, prompts.texts, settings.negatives),
        load_model(settings),
        settings.seed,
        settings.options,
        samples=settings.num_samples,
        progress=sys.stderr.isatty(),
    )
    report = {**result.report, "prompts": prompts.rows()}
    report["seconds"] = {**report["seconds"], "write": timer.report()["write"]}
    done = Dream(prompts, replace(result, report=report))
    save_samples(settings, paths, image, done.result, {"command": "dream", "prompter": facts})
    if settings.sheet:
        write_png(sheet_path(settings.out), done.sheet(image.rgb_u8))
    tell(settings, done.result, paths)


def write_prompts(
    settings: DreamSettings, image_u8: np.ndarray, masks: Sequence[np.ndarray], known: Sequence[str]
) -> tuple[Prompts, dict[str, Any]]:
    """The prompts, and what decided them. The prompt writer's memory is free again afterwards."""
    if all(known):
        return write_missing(image_u8, masks, known, None), {}
    writer = load_writer(settings, known)
    prompts = write_missing(image_u8, masks, known, writer, settings.decoding)
    for row in prompts.rows():
        log.info("%s (%s): %s", row["color"], "written" if row["written"] else "given", row["prompt"])
    facts = {"card": to_plain(writer.card), "weights": writer.weights(), "folder": writer.mllm.folder}
    return prompts, {**facts, "prompts": prompts.rows()}


def load_writer(settings: DreamSettings, known: Sequence[str]) -> PromptWriter:
    """The prompt writer; ValueError, before its weights are read, where it does not suit the masks."""
    folder = default_folder() if settings.prompter is None else settings.prompter
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of a prompt writer (--prompter)")
    card = find_files(folder, settings.adapter).card
    if card.question == "discover":
        colors_of_masks(card, known)
    return PromptWriter.load(folder, settings.adapter, settings.device, settings.dtype, settings.precision)


def build_app() -> typer.Typer:
    return several_app(command(DreamSettings, run_dream))


if __name__ == "__main__":
    run_module(build_app)
