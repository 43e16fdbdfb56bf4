"""How well holes in photographs, and in rendered rooms with patterned floors, are filled; the truth is known.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.erase [--scenes 60] [--out FILE]

Holes have outlines of objects, 6 to 12 % of the image, at random places; "floors": of the solid that is
removed. Depth there is that of the solid, or above all that the hole hides. In the hole: PSNR; energy of the
Laplacian over the truth's; distance of unit features of EfficientNet-Lite0; CPU s. Gains are paired with
95 % intervals. "perspective": exemplars, and planes of the depth, as layers and replaced objects are erased.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, photographs, write_results
from datasets.geometry import bbox_of_mask
from datasets.planes import in_front
from ldm.files import located
from ldm.images import fitted, read_depth, read_image, read_mask, resize
from ldm.registry.models import BUILTIN_DEPTH, BUILTIN_FOLDER, existing_folder, resolve_model_path
from ldm.settings.cli import run_module, single_app

SIDE, AREA, HOLES = 384, (0.06, 0.12), 6  # pixels of the longer side; of an image; in each photograph
FRESH = 9000  # first room; others were looked at while `datasets.perspective` was made
LEVELS = (7, 13)  # layers of the network whose outputs, 1/8 and 1/16 of the image, are compared
MEASURES = ("psnr", "texture", "features", "cpu_s")
PAIRS = (("exemplar", "opencv"), ("perspective", "opencv"), ("perspective", "exemplar"))
Hole = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # set, image (h, w, 3) uint8, mask and depth (h, w)
Scenes = Annotated[int, typer.Option(help="rooms with a patterned floor", metavar="INT", min=2)]


def measure_erasing(scenes: Scenes = 60, out: Out = RESULTS / "erase.json") -> None:
    """Fill the same holes in three ways, and compare with what was there."""
    import torch

    from compose.painters import erase_behind
    from ldm.experts.builtin import load_lite0
    from ldm.experts.erase import EXEMPLAR, OPENCV, Eraser
    from ldm.metrics.numbers import mean_interval, psnr_over

    network: Any = load_lite0(existing_folder(resolve_model_path(BUILTIN_FOLDER))).requires_grad_(False)
    opencv, exemplar = Eraser.load(OPENCV), Eraser.load(EXEMPLAR)
    rows, tables = dict[str, list[dict[str, Any]]](), dict[str, Any]()
    for name, rgb_u8, mask, depth_01 in [*in_photographs(), *in_rooms(scenes)]:
        row, ways, apart = dict[str, Any](), dict[str, Callable[[], Any]](), in_front(depth_01, mask)
        ways["opencv"] = partial(opencv.erase, rgb_u8, mask)
        ways["exemplar"] = partial(exemplar.erase, rgb_u8, mask, 0, apart)
        ways["perspective"] = partial(erase_behind, exemplar, rgb_u8, mask, mask, depth_01, 0)
        for way, fill in ways.items():
            started = time.process_time()
            given = fill()
            seconds = time.process_time() - started
            filled_u8 = given[0] if way == "perspective" else given  # with the depth
            grays = (cv2.cvtColor(u8, cv2.COLOR_RGB2GRAY).astype(np.float32) for u8 in (filled_u8, rgb_u8))
            energy, true = (float(np.square(cv2.Laplacian(gray, cv2.CV_32F))[mask].mean()) for gray in grays)
            distances = []  # over the places that the mask touches
            x = torch.from_numpy(np.stack([filled_u8, rgb_u8])).permute(0, 3, 1, 2)
            x = (x.float() - 127) / 128
            for index, layer in enumerate(network[: LEVELS[-1] + 1]):
                x = layer(x)
                if index in LEVELS:
                    a, b = torch.nn.functional.normalize(x, dim=1)
                    inside = resize(mask.astype(np.float32), a.shape[1:]) > 0
                    distances.append(float((a - b).norm(dim=0).numpy()[inside].mean()))
            measured = psnr_over(filled_u8, rgb_u8, mask), energy / true, float(np.mean(distances)), seconds
            row[way] = dict(zip(MEASURES, measured, strict=True))
        rows.setdefault(name, []).append(row)
    for name, found in rows.items():
        columns = {(way, key): np.array([row[way][key] for row in found]) for way in ways for key in MEASURES}
        table: dict[str, Any] = {"n": len(found)}
        table["changed"] = int((columns["perspective", "psnr"] != columns["exemplar", "psnr"]).sum())
        table |= {way: {key: mean_interval(columns[way, key]) for key in MEASURES} for way in ways}
        for new, old in PAIRS:
            gains = {key: mean_interval(columns[new, key] - columns[old, key]) for key in MEASURES}
            table[f"{new} - {old}"] = gains
        tables[name] = table
    write_results(out, tables, overwrite=True)


def in_photographs() -> Iterator[Hole]:
    """With depth by rules, and with the depth map of the test data where there is one."""
    from ldm.experts.depth import DepthEstimator

    folder, rules = photographs() / "composite", DepthEstimator.load(located(BUILTIN_DEPTH))
    outlines = [read_mask(path) for path in sorted((folder / "object_masks").glob("*.png"))]
    for number, path in enumerate(sorted((folder / "backgrounds").glob("*.jpg"))):
        rgb_u8 = read_image(path).rgb_u8
        rgb_u8 = resize(rgb_u8, size := fitted(rgb_u8.shape[:2], SIDE))
        maps = {"photographs, depth by rules": rules.estimate(rgb_u8)}
        if (known := folder / "depth" / f"{path.stem}.png").is_file():
            maps["photographs, depth map"] = resize(read_depth(known), size, how="nearest")
        for index in range(HOLES):
            mask = random_hole(np.random.default_rng((0, number, index)), outlines, size)
            yield from ((name, rgb_u8, mask, raised(depth_01, mask)) for name, depth_01 in maps.items())


def in_rooms(count: int) -> Iterator[Hole]:
    """Held-out rooms without the removed solid; depth is exact, of floors also that of the small network."""
    from datasets.masks import dilate
    from datasets.scenes import SceneOptions, eval_seed, render, sample_scene
    from datasets.scenes.store import from_01
    from ldm.experts.depth import DepthEstimator

    options = SceneOptions(size=(SIDE, SIDE), objects=(2, 4), reference_size=(16, 16))
    small, index = DepthEstimator.load(located("assets/tiny/depth")), FRESH
    while count:
        scene, index = sample_scene(eval_seed(index), options), index + 1
        if scene.room.floor in ("plain", "carpet") or scene.solids[scene.removed].support >= 0:
            continue
        count, batch, rng = count - 1, render([scene], options), np.random.default_rng(index)
        rgb_u8, mask = from_01(batch.without_01[0]), batch.instances[0].numpy() == scene.removed + 1
        seen = dilate(mask, 0.01)
        yield "floors, exact depth", rgb_u8, seen, batch.depth_01[0].numpy()
        yield "floors, estimated depth", rgb_u8, seen, small.estimate(from_01(batch.image_01[0]))
        mask = random_hole(rng, [mask], mask.shape)
        yield "rooms, exact depth", rgb_u8, mask, raised(batch.without_depth_01[0].numpy(), mask)


def random_hole(rng: np.random.Generator, outlines: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """One of the outlines, AREA of an image of this size (h, w), at a random place inside it."""
    outline = outlines[int(rng.integers(len(outlines)))]
    x0, y0, x1, y1 = bbox_of_mask(outline)
    tight, mask = outline[y0:y1, x0:x1], np.zeros(size, bool)
    scale = np.sqrt(rng.uniform(*AREA) * size[0] * size[1] / tight.sum())
    n, m = (min(size[axis] - 4, max(8, round(tight.shape[axis] * scale))) for axis in (0, 1))
    top, left = int(rng.integers(2, size[0] - n - 1)), int(rng.integers(2, size[1] - m - 1))
    mask[top : top + n, left : left + m] = resize(tight, (n, m), how="nearest")
    return mask


def raised(depth_01: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Depth (h, w) with an object in the mask, a little nearer than all that it hides."""
    return np.where(mask, np.float32(min(1, depth_01[mask].max() + 0.02)), depth_01)


build_app = single_app(measure_erasing)

if __name__ == "__main__":
    run_module(build_app)
