"""What the small inpainter's evaluation paints, classifies and counts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from tqdm.auto import tqdm

from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import Inpainter, load_inpainter
from inpainting.models.text_to_image.pipeline import PaintJob, paint_all
from ldm.denoise import Monitor
from ldm.files import hash_folder, written_whole
from ldm.latents import LatentSpace
from ldm.settings.config import to_plain
from ldm.sheet import grid
from tiny.compositor.training import round_trip_db
from tiny.inpainter.evaluate import MODELS, InpainterEvaluation
from tiny.inpainter.examples import SMALL, Example, PaintCase, make_cases
from tiny.inpainter.model import SolidClassifier, crop_pm1, load_classifier
from tiny.report import Record, alternating, cell, scene_mean, table_lines, write_evaluation
from tiny.world import COLOUR_WORDS, SHAPE_WORDS, box_masks, read_views, refuse_training_scenes

MEASURES = ("colour", "shape", "both", "other")
RIM = {  # of the masks on the sheet
    "red": (230, 60, 60), "blue": (60, 90, 235), "yellow": (235, 200, 40), "green": (50, 180, 80),
    "cyan": (60, 200, 220)}  # fmt: skip
ON_SHEET = 10  # images


GROUPS: dict[str, Callable[[Record], bool]] = {
    "all": lambda mask: True,
    **{f"{n} mask{'s' if n > 1 else ''}": lambda mask, n=n: mask["masks"] == n for n in range(1, 6)},  # type: ignore[misc]
    "3 or more": lambda mask: mask["masks"] >= 3,
    "24-px masks": lambda mask: mask["small"],
    "one colour": lambda mask: not mask["patterned"],
    "with a pattern": lambda mask: mask["patterned"],
}


def by_group(results: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Group -> measure -> fraction of masks with its 95 % interval; groups without masks are left out."""
    numbers = {}
    for name, belongs in GROUPS.items():
        if masks := [mask for mask in results if belongs(mask)]:
            numbers[name] = {"masks": len(masks), **{of: scene_mean(masks, of) for of in MEASURES}}
    return numbers


def evaluate_inpainter(config: InpainterEvaluation) -> None:
    """Does each mask show what its own prompt names? Six models on held-out scenes; writes a table."""
    refuse_training_scenes(config.data)
    views = read_views(config.data, count=config.scenes)
    classifier = load_classifier(config.run / "judge")
    cases = {kind: make_cases(views, kind, *config.masks, config.seed) for kind in config.prompts}
    groups: dict[str, dict[str, dict]] = {}
    images: dict[str, np.ndarray] = {}
    for name, kind in product(config.models, config.prompts):
        painted = painted_images(config, name, kind, cases[kind])
        groups.setdefault(name, {})[kind] = by_group(mask_results(classifier, cases[kind], painted))
        images.setdefault(name, painted)
    vae = load_inpainter(config.run / "painter" / "model", device="cpu").latent_space.vae
    ceiling = by_group(mask_results(classifier, make_cases(views, "true", *config.masks, config.seed), None))
    report = {
        "settings": to_plain(config),
        "images": {kind: len(chosen) for kind, chosen in cases.items()},
        "first_stage_psnr_db": round(round_trip_db(LatentSpace(vae), views.images_u8[:128]).mean(), 2),
        "judge_on_true_renders": ceiling,
        "models": groups,
    }
    text = []  # of the table: one block per kind of prompts, one line per group
    for kind, chosen in cases.items():
        models = {name: by[kind] for name, by in groups.items()}
        text.append(f"prompts: {kind}, {len(chosen)} images; fraction of masks [95 % interval]")
        for measure in MEASURES:
            rows = {
                f"{group:<16}{numbers['masks']:>7}": {name: by[group][measure] for name, by in models.items()}
                for group, numbers in models[config.models[0]].items()
            }
            text += ["", *table_lines(f"{measure:<16}{'masks':>7}", rows, tuple(models), (23, 22))]
        text.append("")
    text.append("the classifier on the true renders, by what stood there (the ceiling)")
    for group, numbers in ceiling.items():
        right = "".join(f"  {measure} {cell(numbers[measure])}" for measure in ("colour", "shape"))
        text.append(f"{group:<16}{numbers['masks']:>7}{right}")
    # The sheet: image with masks, then each model's result; the first cases, by number of masks in turn.
    shown, cells, labels = cases[config.prompts[0]], [], []
    for number in alternating([len(case.wanted) for case in shown], descending=True)[:ON_SHEET]:
        case = shown[number]
        outlined = case.example.image_u8.copy()
        for (x0, y0, x1, y1), colour in zip(case.example.boxes, RIM.values(), strict=False):
            cv2.rectangle(outlined, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
        cells.append([outlined, *(results[number] for results in images.values())])
        labels.append("; ".join(f"{rim}: {solid.text}" for rim, solid in zip(RIM, case.wanted, strict=False)))
    sheet_u8 = grid(cells, ["masks", *images], labels, cell=192)
    write_evaluation(config.out / "inpainter.json", report, text, sheet_u8)


def painted_images(config: InpainterEvaluation, name: str, kind: str, cases: list[PaintCase]) -> np.ndarray:
    """(n, h, w, 3) uint8, from the run's folder if it was painted before by the same networks."""
    (folder, prompting), sampling = MODELS[name], config.sampling
    lora = config.run / folder if folder else None
    base = config.run / "painter" / "model"
    stored_at = config.run / "evaluation" / f"{name}_{kind}.npz"
    weights = [hash_folder(base), hash_folder(lora) if lora else {}]
    recipe = json.dumps([to_plain(sampling), config.seed, config.masks, config.scenes, len(cases), weights])
    if stored_at.exists():
        with np.load(stored_at) as stored:
            if str(stored["recipe"]) == recipe:
                return stored["images"]
    seeds = [config.seed * 1_000_003 + index for index in range(len(cases))]
    examples, pipe = [case.example for case in cases], load_inpainter(base, lora, device="cpu")
    options = replace(prompting, steps=sampling.steps, guidance=sampling.guidance)
    painted = paint_examples(pipe, examples, seeds, options, sampling.batch)
    with written_whole(stored_at) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, images=painted, recipe=recipe)
    return painted


def paint_examples(
    pipe: Inpainter, examples: Sequence[Example], seeds: Sequence[int], options: PaintOptions, batch: int
) -> np.ndarray:
    """(n, h, w, 3) uint8."""
    painted: list[np.ndarray] = []
    for start in tqdm(range(0, len(examples), batch), desc="painting", leave=False):
        part, jobs = slice(start, start + batch), []
        for example, seed in zip(examples[part], seeds[part], strict=True):
            masks = box_masks(example.boxes, example.image_u8.shape[:2])
            jobs.append(PaintJob(example.image_u8, list(zip(masks, example.prompts, strict=True)), (seed,)))
        painted += [result.image_u8 for result in paint_all(jobs, pipe, options, Monitor(progress=False))]
    return np.stack(painted)


@torch.inference_mode()
def mask_results(
    classifier: SolidClassifier, cases: Sequence[PaintCase], painted: np.ndarray | None
) -> list[Record]:
    """What the classifier says of each mask of images (n, h, w, 3), None: the renders, under the names of
    MEASURES (other: the colour of another mask's prompt, leakage); beside it what GROUPS asks for.
    """
    shown = [case.example.image_u8 for case in cases] if painted is None else list(painted)
    results = []
    for case, image in zip(cases, shown, strict=True):
        crops = torch.from_numpy(np.stack([crop_pm1(image, box) for box in case.example.boxes]))
        answers = (scores.argmax(1).tolist() for scores in classifier(crops))
        for name, box, seen_colour, seen_shape in zip(case.wanted, case.example.boxes, *answers, strict=True):
            colour, shape = COLOUR_WORDS[seen_colour] == name.colour, SHAPE_WORDS[seen_shape] == name.shape
            others = {other.colour for other in case.wanted} - {name.colour}
            results.append({
                "scene": case.example.scene, "masks": len(case.wanted),
                "small": (box[2] - box[0], box[3] - box[1]) == (SMALL, SMALL),
                "patterned": bool(name.pattern), "colour": colour, "shape": shape, "both": colour and shape,
                "other": COLOUR_WORDS[seen_colour] in others})  # fmt: skip
    return results
