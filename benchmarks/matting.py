"""Soft edges of cut-outs with known alpha: rendered solids with hair along their outline, over photographs.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.matting [--out FILE]

Each way is given the exact mask (alpha above one half). Errors are mean absolute ones, in [0, 1]: of alpha
within BAND pixels of the outline, and of the object's colours where alpha lies in RIM.
"""

import time

import cv2
import numpy as np

from benchmarks.harness import RESULTS, Out, Photographs, photographs, write_results
from ldm.images import read_image, resize
from ldm.settings.cli import run_module, single_app

SIDE, FINER = 256, 4  # pixels of a cut-out; it is drawn so many times as large
BAND = 4
HAIR, HAIRS = 5.0, 900  # longest hair in pixels, and their number
COUNT, SEED = 24, 0
RIM = (0.05, 0.95)  # alpha of pixels whose colour is compared


def measure_matting(data: Photographs = None, out: Out = RESULTS / "matting.json") -> None:
    """Estimate alpha and colours of soft-edged objects over photographs, and compare with what was drawn."""
    from ldm.experts.matting import outline_band, own_colours, soft_alpha

    paths = sorted((photographs(data) / "composite/backgrounds").glob("*.jpg"))
    rows = []
    for index in range(COUNT):
        front_u8, alpha = hairy_solid(index, np.random.default_rng((SEED, index)))
        behind_u8 = resize(read_image(paths[index % len(paths)]).rgb_u8, (SIDE, SIDE))
        mixed = alpha[..., None] * front_u8 + (1 - alpha[..., None]) * behind_u8
        image_u8, mask = np.rint(mixed).astype(np.uint8), alpha > 0.5
        started = time.process_time()
        found = soft_alpha(image_u8, mask)
        colours_u8 = own_colours(image_u8, found)
        seconds = time.process_time() - started
        band, rim = outline_band(mask, BAND), (alpha > RIM[0]) & (alpha < RIM[1])
        alphas = {"mask": mask, "blurred": cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)}
        alphas["closed_form"], row = found, dict[str, float]()
        for name, each in alphas.items():
            row[f"alpha_{name}"] = float(np.abs(each - alpha)[band].mean())
        for name, each in (("image", image_u8), ("own", colours_u8)):
            row[f"colour_{name}"] = float(np.abs(each[rim].astype(float) - front_u8[rim]).mean() / 255)
        rows.append({**row, "cpu_s": seconds})
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    write_results(out, {"n": COUNT, "means": means, "objects": rows})


def hairy_solid(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours (h, w, 3) uint8, defined everywhere, and alpha (h, w) in [0, 1] of a solid with hair."""
    from datasets.scenes import SceneOptions, eval_seed, render, sample_scene

    options = SceneOptions(reference_size=(SIDE, SIDE))
    batch = render([sample_scene(eval_seed(index), options)], options)
    rgb_u8 = np.rint(batch.reference_01[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    solid = cv2.erode(batch.reference_mask[0].numpy().astype(np.uint8), np.ones((3, 3)))
    # Beyond the outline an object has the colour of its nearest point.
    _, nearest = cv2.distanceTransformWithLabels(1 - solid, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[solid > 0]] = rgb_u8[solid > 0]
    large = cv2.resize(solid, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LINEAR) * np.uint8(255)
    (outline, *_), _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for x, y in outline[rng.integers(len(outline), size=HAIRS), 0]:
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(1, HAIR)
        end = (x + length * np.cos(angle), y + length * np.sin(angle))
        first, last = ((round(FINER * a), round(FINER * b)) for a, b in ((x, y), end))
        cv2.line(large, first, last, 255, thickness=FINER // 2, lineType=cv2.LINE_AA)
    return colours[nearest], resize(large, (SIDE, SIDE)).astype(np.float32) / 255


build_app = single_app(measure_matting)

if __name__ == "__main__":
    run_module(build_app)
