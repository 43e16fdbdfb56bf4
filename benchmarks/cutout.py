"""How well the object of a photograph is cut out: GrabCut, U2-Netp, and U2-Netp with colours at the rim.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.cutout [--out FILE]

Ground truth are the masks of the test data. Most were made from colours, which favours what reads colours; so
five are also corrected by hand (cutout.yaml). On these the mean distance of the outlines is measured as well,
both ways, in percent of the diagonal.
"""

import time
from itertools import chain, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from benchmarks.harness import RESULTS, Out, Photographs, photographs, write_results
from ldm.files import read_text
from ldm.images import read_image, read_mask
from ldm.registry.models import cutout_network
from ldm.settings.cli import run_module, single_app

CORRECTIONS = Path(__file__).with_suffix(".yaml")
OBJECTS = "composite/objects/*.jpg"
CLUTTERED = ("MSRA10K_Imgs_GT/*.jpg", "DUTS-TR/DUTS-TR-Image/*.jpg", "DUTS-TE/DUTS-TE-Image/*.jpg")


def measure_cutouts(data: Photographs = None, out: Out = RESULTS / "cutout.json") -> None:
    """Cut out the objects of photographs and compare with their masks."""
    folder, network = photographs(data), cutout_network("u2netp")
    from ldm.experts.segment import grabcut_mask, u2netp_mask, u2netp_scores

    assert network is not None
    ways: dict[str, Any] = {
        "GrabCut": grabcut_mask,
        "U2-Netp": lambda rgb_u8: cv2.resize(u2netp_scores(rgb_u8, network), rgb_u8.shape[1::-1]) > 0.5,
        "U2-Netp, rim by colours": lambda rgb_u8: u2netp_mask(rgb_u8, network),
    }
    changes, rows = yaml.safe_load(read_text(CORRECTIONS)), dict[str, dict[str, Any]]()
    cluttered = (path for pattern in CLUTTERED for path in (folder / "saliency").glob(pattern))
    groups = {"objects": sorted(folder.glob(OBJECTS)), "cluttered": sorted(cluttered)}
    for path in chain(*groups.values()):
        rgb_u8, home = read_image(path).rgb_u8, path.parent
        beside = (home.parent / "object_masks", home, Path(f"{home}".replace("Image", "Mask")))
        truth = read_mask(next(file for at in beside if (file := at / f"{path.stem}.png").is_file()))
        row: dict[str, Any] = {}
        for name, cut in ways.items():
            started = time.process_time()
            mask = cut(rgb_u8)
            row[name] = {"cpu_s": time.process_time() - started, "iou": mask_iou(mask, truth)}
            if path.stem in changes:
                better_u8 = truth.astype(np.uint8)
                for word, value in (("add", 1), ("remove", 0)):
                    for polygon in changes[path.stem].get(word, []):
                        points = np.round(np.array(polygon) * truth.shape[::-1]).astype(np.int32)
                        cv2.fillPoly(better_u8, [points], value)
                both = mask, better_u8 > 0
                row[name]["corrected_iou"] = mask_iou(*both)
                edges = [m & ~(cv2.erode(m.astype(np.uint8), np.ones((3, 3))) > 0) for m in both]
                away = [cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) for edge in edges]
                distance = (away[1][edges[0]].mean() + away[0][edges[1]].mean()) / 2
                row[name]["outline"] = float(100 * distance / np.hypot(*mask.shape))
        rows[path.stem] = row
    body: dict[str, Any] = {group: {} for group in groups}
    for (group, paths), name in product(groups.items(), ways):
        chosen = [rows[path.stem][name] for path in paths]
        keys = sorted({key for row in chosen for key in row})
        means = {key: float(np.mean([row[key] for row in chosen if key in row])) for key in keys}
        body[group][name] = {"n": len(chosen), **means, "worst_iou": min(row["iou"] for row in chosen)}
    write_results(out, {**body, "images": rows})


def mask_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


build_app = single_app(measure_cutouts)

if __name__ == "__main__":
    run_module(build_app)
