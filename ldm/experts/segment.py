"""Which pixels (h, w) of an object's image are the object: its alpha, SAM, U2-Netp, or GrabCut."""

import functools
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ldm.checkpoints import load_pretrained, loading
from ldm.decode import LoadedImage
from ldm.device import check_finite, pick_device, pick_dtype
from ldm.files import named_failure
from ldm.images import IMAGENET_MEAN, IMAGENET_STD, Box01, fitted, resize
from ldm.registry.models import cutout_network

OPAQUE = 127  # alpha above this, of 255, belongs to the object
PLAUSIBLE = (0.01, 0.97)  # fraction of the image that an object may fill (chosen, like what follows)
GRABCUT_SIDE = 320  # pixels; GrabCut colours need no more, and its time grows with the area
ITERATIONS = 5
RIM_FRACTION = 0.02  # fraction of each side that is taken as background
PLAIN_RIM = 0.6  # of the rim in one colour makes a plain background
SAME_COLOUR = 12.0  # largest Lab distance (8-bit scale) of rim pixels to that colour
OTHER_COLOUR = 25.0  # smallest Lab distance of pixels that stand out from it
CENTRALITY = 0.35  # distance from the middle, as a fraction of the image, at which a piece counts 1/e
REACH, NEAR, CERTAIN = 0.3, 0.07, 0.012  # radii round a click, of the longer side (chosen)
SMALL_HOLE = 0.004  # fraction of the image; larger holes, as in a handle, stay open
U2NETP_SIDE = 320  # pixels; the published network's input (Qin et al. 2020, U2-Net, section 3.3)
# Rim of the network's mask that colours decide; measured on 15 photographs (docs/compositor.md).
COLOUR_SIDE, COLOUR_RIM, COLOUR_ITERATIONS = 512, 0.02, 3
AGREES = 0.9  # least IoU of the result with the network's mask; below, the colours were misled
BOX_MARGIN = 0.15  # of the sides of a box around the object, so that what is outside is seen (chosen)
TAIL = 0.01  # fraction of an object, from which a part that was missed counts (chosen)
FAINT_SCORES, FAINT_PART = (0.2, 0.1), 0.02  # of faint parts; their least area over the object's (chosen)
THING = 0.1  # fraction of a mask from which a separate piece is a thing of its own (chosen)
# What makes a mask doubtful; chosen on 15 photographs with known masks: five of six bad masks are named.
TOUCHING = 0.05  # fraction of a side of the image
PART = 0.02  # fraction of the mask from which a separate piece counts
RAGGED = 0.36  # least compactness, 4 pi area / outline^2, of a mask that touches no side
BAND = (7, 7)  # pixels of GRABCUT_SIDE over which colours on either side of the outline are averaged
SAM_LOCK = threading.Lock()  # the network moves to the device and back
FAINT = 0.08  # fraction of the outline at which these colours are the same


class ObjectNotFound(ValueError):
    """What was found in an image is too small or too large to be an object."""


def object_mask(
    image: LoadedImage, sam: Path | str | None = None, cutout: str = "auto", box01: Box01 | None = None,
    device: str = "auto", dtype: str = "auto",
) -> tuple[np.ndarray, str]:  # fmt: skip
    """Find the object of an image: by its alpha channel, else SAM where given, U2-Netp, or GrabCut.

    sam:     folder of a SAM; device, dtype: of it
    cutout:  auto, u2netp or grabcut, see `cutout_network`
    box01:   the object lies in this box, as fractions of the image; without it in the whole image
    returns: mask (h, w) and which of "alpha", "sam", "u2netp", "grabcut" made it
    """
    h, w = image.size
    inside = np.s_[0:h, 0:w]
    if box01 is not None:
        x0, y0, x1, y1 = box01
        along, across = BOX_MARGIN * (y1 - y0), BOX_MARGIN * (x1 - x0)
        top, left = max(0, int((y0 - along) * h)), max(0, int((x0 - across) * w))
        inside = np.s_[top : math.ceil((y1 + along) * h), left : math.ceil((x1 + across) * w)]
    mask, alpha_u8 = np.zeros((h, w), bool), image.alpha_u8
    if alpha_u8 is not None and 0 < (opaque := alpha_u8 > OPAQUE).mean() < 1:  # some pixels opaque, some not
        mask[inside] = opaque[inside]
        return mask, "alpha"
    if sam is not None:
        mask, way = sam_mask(image.rgb_u8, sam, box01, device, dtype), "sam"
    elif network := cutout_network(cutout):
        mask[inside], way = u2netp_mask(image.rgb_u8[inside], network), "u2netp"
    else:
        mask[inside], way = grabcut_mask(image.rgb_u8[inside]), "grabcut"
    fraction, (least, most) = float(mask[inside].mean()), PLAUSIBLE
    if not least <= fraction <= most:
        wrong = f"the object was not found in its image: the mask found covers {fraction:.1%}, expected"
        raise ObjectNotFound(f"{wrong} {least:.0%} to {most:.0%}; pass --object-mask or --object-box")
    return mask, way


def with_parts(rgb_u8: np.ndarray, mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A mask (h, w) with what looks like it in the region `inside` (h, w), such as tails and handles."""
    lines = (np.flatnonzero((mask | inside).any(axis)) for axis in (1, 0))
    spans = ((line, 2 + round(BOX_MARGIN * len(line))) for line in lines)
    view = tuple(slice(max(0, line[0] - reach), line[-1] + reach) for line, reach in spans)
    size = fitted(mask[view].shape, GRABCUT_SIDE)
    near, free = resize(mask[view], size), resize(inside[view], size)
    start = np.where(free, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    start[near], start[cv2.erode(near.astype(np.uint8), np.ones((9, 9))) > 0] = cv2.GC_PR_FGD, cv2.GC_FGD
    found = grabcut(resize(np.ascontiguousarray(rgb_u8[view]), size), start, ITERATIONS) & ~near
    found = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    _, pieces, table, _ = cv2.connectedComponentsWithStats(found)
    large = table[:, cv2.CC_STAT_AREA] >= TAIL * near.sum()
    large[0] = False  # piece 0 is what was not found
    whole = mask.copy()
    whole[view] |= resize(large[pieces], mask[view].shape, how="linear")
    return whole


def things(mask: np.ndarray) -> list[Box01]:
    """Boxes of the separate things of a mask (h, w), largest first: one where it shows one object."""
    (h, w), (_, _, table, _) = mask.shape, cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = [row for row in table[1:] if row[cv2.CC_STAT_AREA] >= THING * mask.sum()]
    large.sort(key=lambda row: -row[cv2.CC_STAT_AREA])
    return [(x / w, y / h, (x + across) / w, (y + along) / h) for x, y, across, along, _ in large]


def mask_doubts(rgb_u8: np.ndarray, mask: np.ndarray) -> list[str]:
    """What speaks against a mask (h, w) that was found in an image (h, w, 3), a phrase for each reason."""
    n, m = (max(BAND[0], round(side * GRABCUT_SIDE / max(mask.shape))) for side in mask.shape)
    small, edge = resize(mask, (n, m), how="linear").astype(np.uint8), 2 + round(RIM_FRACTION * max(n, m))
    strips = {"upper": small[:edge], "lower": small[-edge:], "left": small.T[:edge], "right": small.T[-edge:]}
    touched = [name for name, strip in strips.items() if strip.any(0).mean() > TOUCHING]
    lab, sums = cv2.cvtColor(resize(rgb_u8, (n, m)), cv2.COLOR_RGB2LAB), []
    for side in (small, 1 - small):
        count = cv2.blur(side.astype(np.float32), BAND)[..., None]
        sums.append(cv2.blur(lab * side[..., None].astype(np.float32), BAND) / np.maximum(count, 1e-3))
    rim = (small > cv2.erode(small, np.ones((3, 3)))) & (count[..., 0] > 0)
    faint = float((np.linalg.norm(sums[0] - sums[1], axis=2)[rim] < SAME_COLOUR).mean()) if rim.any() else 0.0
    outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    length = sum(cv2.arcLength(line, True) for line in outlines)
    parts = sum(cv2.contourArea(line) > PART * small.sum() for line in outlines)
    ragged = parts > 1 or (not touched and 4 * np.pi * small.sum() < RAGGED * length**2)
    reasons = {
        f"it touches the {' and '.join(touched)} border of the image": bool(touched),
        "its outline is ragged or in parts, as of several things or strips of the background": ragged,
        f"{faint:.0%} of its outline has one colour on both sides": faint > FAINT,
    }
    return [reason for reason, holds in reasons.items() if holds]


def mask_at(rgb_u8: np.ndarray, point01: tuple[float, float]) -> np.ndarray:
    """Mask (h, w), by GrabCut, of what an image (h, w, 3) shows at a point (x, y) in fractions; not empty."""
    (h, w), small_u8 = rgb_u8.shape[:2], resize(rgb_u8, fitted(rgb_u8.shape[:2], GRABCUT_SIDE))
    n, m = small_u8.shape[:2]
    x, y = min(int(point01[0] * m), m - 1), min(int(point01[1] * n), n - 1)
    start = np.full((n, m), cv2.GC_BGD, np.uint8)
    for radius, label in ((REACH, cv2.GC_PR_BGD), (NEAR, cv2.GC_PR_FGD), (CERTAIN, cv2.GC_FGD)):
        cv2.circle(start, (x, y), max(1, round(radius * max(n, m))), int(label), -1)
    _, pieces = cv2.connectedComponents(grabcut(small_u8, start, ITERATIONS).astype(np.uint8), connectivity=4)
    found = resize(pieces == pieces[y, x], (h, w), how="linear")
    found[min(int(point01[1] * h), h - 1), min(int(point01[0] * w), w - 1)] = True
    return found


def corrected_mask(rgb_u8: np.ndarray, mask: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """What GrabCut makes of a mask (h, w) and a user's marks (h, w) uint8: 0 none, 1 object, 2 background."""
    size = fitted(mask.shape, GRABCUT_SIDE)
    small_u8, near = resize(rgb_u8, size), resize(mask, size)
    start = np.where(near, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    for value, label in ((1, cv2.GC_FGD), (2, cv2.GC_BGD)):
        start[resize((marks == value).astype(np.float32), near.shape) > 0] = label
    found = resize(grabcut(small_u8, start, ITERATIONS), mask.shape, how="linear")
    return (found & (marks != 2)) | (marks == 1)


def grabcut_mask(rgb_u8: np.ndarray) -> np.ndarray:
    """GrabCut from a thin rim of background, one connected piece, at the image's size, without chance."""
    size, small_u8 = rgb_u8.shape[:2], resize(rgb_u8, fitted(rgb_u8.shape[:2], GRABCUT_SIDE))
    # The rim is background. On a plain background (a studio image) colour says more than place: what differs
    # from it is probably the object, also where it touches the rim.
    n, m = small_u8.shape[:2]
    rim, low, high = np.ones((n, m), bool), RIM_FRACTION, 1 - RIM_FRACTION
    inner_rows = slice(max(1, round(low * n)), min(n - 1, round(high * n)))
    rim[inner_rows, max(1, round(low * m)) : min(m - 1, round(high * m))] = False
    lab = cv2.cvtColor(small_u8, cv2.COLOR_RGB2LAB).astype(np.float32)
    distance = np.linalg.norm(lab - np.median(lab[rim], axis=0), axis=2)
    start = np.where(rim, cv2.GC_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    if (distance[rim] < SAME_COLOUR).mean() > PLAIN_RIM:
        start[~rim] = cv2.GC_PR_BGD
        start[distance > OTHER_COLOUR] = cv2.GC_PR_FGD
    if (start == cv2.GC_PR_FGD).all():
        return np.zeros(size, bool)
    mask = grabcut(small_u8, start, ITERATIONS)
    count, pieces, table, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count > 1:  # the piece with the best size for its distance from the middle of the image
        across, along = centres[1:, 0] / m - 0.5, centres[1:, 1] / n - 0.5
        weight = table[1:, cv2.CC_STAT_AREA] * np.exp(-((np.hypot(across, along) / CENTRALITY) ** 2))
        mask = pieces == 1 + int(weight.argmax())
    _, pieces, table, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small_holes = table[:, cv2.CC_STAT_AREA] < SMALL_HOLE * mask.size
    small_holes[0] = False  # piece 0 is the mask itself
    return resize(mask | small_holes[pieces], size, how="linear")


def grabcut(rgb_u8: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    """OpenCV's GrabCut of an image (h, w, 3) from its labels (h, w), without chance; mask (h, w)."""
    objects = (start == cv2.GC_FGD) | (start == cv2.GC_PR_FGD)
    if objects.all() or not objects.any():  # OpenCV needs both
        return objects
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    unused_rectangle = (0, 0, 1, 1)
    labels, *_ = cv2.grabCut(
        cv2.cvtColor(rgb_u8, cv2.COLOR_RGB2BGR), start, unused_rectangle, background, foreground,
        iterations, cv2.GC_INIT_WITH_MASK)  # fmt: skip
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def u2netp_scores(images_u8: Sequence[np.ndarray], path: Path) -> list[np.ndarray]:
    """How salient each part of images (h, w, 3) is, (320, 320) in [0, 1], by U2-Netp (Qin et al. 2020)."""
    try:
        network = cv2.dnn.readNetFromONNX(str(path))  # anew each time: a network is not safe in threads
    except cv2.error as error:
        raise ValueError(f"{path}: not a readable ONNX network; pull it again") from error
    found = []
    for rgb_u8 in images_u8:
        image = cv2.resize(rgb_u8, (U2NETP_SIDE, U2NETP_SIDE)).astype(np.float32)
        image = (image / max(float(image.max()), 1.0) - IMAGENET_MEAN) / IMAGENET_STD
        network.setInput(image.transpose(2, 0, 1)[None].astype(np.float32))
        scores = network.forward(network.getUnconnectedOutLayersNames()[0])[0, 0]
        if not np.isfinite(scores).all():
            raise ValueError(f"{path}: the network's answer is not finite; pull it again")
        found.append((scores - scores.min()) / max(float(np.ptp(scores)), 1e-6))
    return found


def u2netp_mask(rgb_u8: np.ndarray, path: Path) -> np.ndarray:
    """The salient object of an image (h, w, 3) by U2-Netp; colours decide its rim."""
    h, w = rgb_u8.shape[:2]
    (scores,) = u2netp_scores([rgb_u8], path)
    n, m = fitted((h, w), COLOUR_SIDE)
    scores = cv2.resize(scores, (m, n))
    # Faint parts belong to it too: what hangs together with it, and large separate ones, as a hanging tail.
    certain, faint, faintest = (scores > level for level in (0.5, *FAINT_SCORES))
    _, pieces = cv2.connectedComponents(faint.astype(np.uint8))
    found = faint & np.isin(pieces, np.unique(pieces[certain]))
    _, pieces = cv2.connectedComponents((faintest & ~found).astype(np.uint8))
    sizes = np.bincount(pieces[faint & ~found], minlength=pieces.max() + 1)
    apart = faintest & ~found & (sizes > FAINT_PART * certain.sum())[pieces]
    found |= apart
    reach = max(1, round(COLOUR_RIM * max(n, m)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    sure, near = (
        f(mask.astype(np.uint8), kernel) > 0 for f, mask in ((cv2.erode, certain), (cv2.dilate, found))
    )
    start = np.where(found, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    start[sure], start[~near] = cv2.GC_FGD, cv2.GC_BGD
    if sure.any() and not near.all():
        refined = grabcut(resize(rgb_u8, (n, m)), start, COLOUR_ITERATIONS)
        agree = (refined & certain).sum() >= AGREES * (refined & ~apart | certain).sum()
        found = (refined if agree else certain) | apart
    return resize(found, (h, w), how="linear")


@functools.lru_cache(maxsize=1)  # a click and a layer ask for the same one; it takes up to 2.4 GiB
def load_sam(folder: str, stamps: tuple[tuple[str, int], ...], dtype: torch.dtype) -> tuple[Any, Any]:
    """Network, on the CPU, and processor. stamps: names and times of the files, so that new ones are read"""
    from transformers import SamModel, SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    with named_failure(f"SAM folder {folder} cannot be loaded", OSError, ValueError), loading():
        model = load_pretrained(SamModel, folder, dtype=dtype)
        return model, SamProcessor(SamImageProcessorPil.from_pretrained(folder))


@torch.inference_mode()
def sam_mask(
    rgb_u8: np.ndarray, folder: Path | str, box01: Box01 | None = None, device: str = "auto",
    dtype: str = "auto",
) -> np.ndarray:  # fmt: skip
    """SAM prompted with the box, or with the middle of the image; the candidate it trusts most.

    It is kept in memory, and on the device only while it works. device, dtype: as in `ldm.device`
    """
    where = pick_device(device)
    stamps = sorted((path.name, path.stat().st_mtime_ns) for path in Path(folder).glob("*"))
    kind = pick_dtype(dtype, where, folder, "fp32")
    model, processor = load_sam(str(folder), tuple(stamps), kind)
    h, w = rgb_u8.shape[:2]
    if box01 is None:
        prompt = {"input_points": [[[w / 2, h / 2]]]}
    else:
        prompt = {"input_boxes": [[[box01[0] * w, box01[1] * h, box01[2] * w, box01[3] * h]]]}
    inputs = processor(images=rgb_u8, return_tensors="pt", **prompt).to(torch.float32)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    inputs["pixel_values"] = inputs["pixel_values"].to(kind)  # coordinates need their digits
    with SAM_LOCK:
        try:
            output = model.to(where)(**inputs.to(where), multimask_output=True)
        finally:
            model.to("cpu")
    scores = check_finite(output.iou_scores, "segmentation network (SAM)")[0, 0]
    masks = processor.image_processor.post_process_masks(output.pred_masks.float().cpu(), *sizes)[0]
    return np.asarray(masks[0, int(scores.argmax())]).astype(bool)  # of (1, candidates, h, w)
