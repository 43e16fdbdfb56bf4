"""How well holes in photographs are filled: every eraser that needs no weights, against the known truth.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.erasing [--out FILE]

Holes have the outlines of the objects of the test data and 6 to 12 % of the area of its backgrounds. Texture
energy: mean square of the Laplacian of the gray values, over that of the truth; `coarser` is the same of what
a Gaussian of SIGMA pixels takes away.
Feature distance: of unit vectors of EfficientNet-Lite0 at two of its levels, over the places that the hole
touches. Gains over OpenCV are paired, with 95 % intervals.
"""

import time
from typing import Any

import cv2
import numpy as np

from benchmarks.harness import RESULTS, Out, Photographs, photographs, write_results
from ldm.images import fitted, read_image, read_mask, resize
from ldm.registry.models import BUILTIN_FOLDER, how_to_get, resolve_model_path
from ldm.settings.cli import run_module, single_app

SIDE = 384  # pixels of the longer side of a photograph
AREA = (0.06, 0.12)  # of a photograph
HOLES = 6  # in each photograph
SIGMA = 2.0
LEVELS = (7, 13)  # layers of the network whose outputs, 1/8 and 1/16 of the image, are compared
MEASURES = ("psnr", "texture", "coarser", "features", "cpu_s")
SEED = 0


def measure_erasing(data: Photographs = None, out: Out = RESULTS / "erasing.json") -> None:
    """Fill holes in photographs by OpenCV and from exemplars, and compare with what was there."""
    from ldm.experts.builtin import load_lite0
    from ldm.experts.erase import Eraser
    from ldm.metrics.intervals import mean_interval

    folder, weights = photographs(data) / "composite", resolve_model_path(BUILTIN_FOLDER)
    files = sorted(weights.glob("*.pth"))
    if not files:
        raise ValueError(f"{weights}: no EfficientNet-Lite0{how_to_get(BUILTIN_FOLDER)}")
    network, erasers = load_lite0(files[0]), [Eraser.load(name) for name in ("opencv", "exemplar")]
    outlines = [read_mask(path) for path in sorted((folder / "object_masks").glob("*.png"))]
    rows = []
    for number, path in enumerate(sorted((folder / "backgrounds").glob("*.jpg"))):
        rgb_u8 = read_image(path).rgb_u8
        rgb_u8 = resize(rgb_u8, fitted(rgb_u8.shape[:2], SIDE))
        for index in range(HOLES):
            rng = np.random.default_rng((SEED, number, index))
            # An outline (n, m) at a random place inside the image, AREA of it.
            outline, size = outlines[int(rng.integers(len(outlines)))], rgb_u8.shape[:2]
            lines = map(np.flatnonzero, (outline.any(1), outline.any(0)))
            y, x = (slice(line[0], line[-1] + 1) for line in lines)
            tight = outline[y, x].astype(np.uint8)
            scale = np.sqrt(rng.uniform(*AREA) * size[0] * size[1] / tight.sum())
            n, m = (min(size[axis] - 4, max(8, round(tight.shape[axis] * scale))) for axis in (0, 1))
            top, left = int(rng.integers(2, size[0] - n - 1)), int(rng.integers(2, size[1] - m - 1))
            mask, whole = np.zeros(size, bool), cv2.resize(tight, (m, n), interpolation=cv2.INTER_NEAREST)
            mask[top : top + n, left : left + m] = whole > 0
            row: dict[str, Any] = {"image": path.stem, "hole": index, "area": float(mask.mean())}
            truth = lite0_levels(network, rgb_u8)
            for eraser in erasers:
                started = time.process_time()
                filled_u8 = eraser.erase(rgb_u8, mask)
                seconds = time.process_time() - started
                error = np.square(filled_u8[mask].astype(np.float64) - rgb_u8[mask]).mean()
                energies = []  # of the Laplacian, and of what a Gaussian takes away
                for image_u8 in (filled_u8, rgb_u8):
                    gray = cv2.cvtColor(image_u8, cv2.COLOR_RGB2GRAY).astype(np.float32)
                    details = cv2.Laplacian(gray, cv2.CV_32F), gray - cv2.GaussianBlur(gray, (0, 0), SIGMA)
                    energies.append([float(np.square(detail)[mask].mean()) for detail in details])
                texture, coarser = (ours / true for ours, true in zip(*energies, strict=True))
                distances = []  # of unit vectors, over the places that the mask touches
                for a, b in zip(lite0_levels(network, filled_u8), truth, strict=True):
                    inside = resize(mask.astype(np.float32), a.shape[1:]) > 0
                    distances.append(float((a - b).norm(dim=0).numpy()[inside].mean()))
                psnr = 10 * np.log10(255**2 / error)
                measured = map(float, (psnr, texture, coarser, np.mean(distances), seconds))
                row[eraser.kind] = dict(zip(MEASURES, measured, strict=True))
            rows.append(row)
    columns = ((each.kind, [row[each.kind] for row in rows]) for each in erasers)
    values = {kind: {name: [row[name] for row in found] for name in MEASURES} for kind, found in columns}
    means = {kind: {name: float(np.mean(v)) for name, v in found.items()} for kind, found in values.items()}
    new, old = values["exemplar"], values["opencv"]
    gains = {name: mean_interval(np.subtract(new[name], old[name])) for name in MEASURES}
    write_results(out, {"n": len(rows), "means": means, "exemplar - opencv": gains, "holes": rows})


def lite0_levels(network: Any, rgb_u8: np.ndarray) -> list[Any]:
    """Unit vectors (c, n, m) of an image at each of LEVELS."""
    import torch

    x, found = (torch.from_numpy(rgb_u8).permute(2, 0, 1).float()[None] - 127) / 128, []
    with torch.inference_mode():
        for index, layer in enumerate(network[: LEVELS[-1] + 1]):
            x = layer(x)
            if index in LEVELS:
                found.append(torch.nn.functional.normalize(x[0], dim=0))
    return found


build_app = single_app(measure_erasing)

if __name__ == "__main__":
    run_module(build_app)
