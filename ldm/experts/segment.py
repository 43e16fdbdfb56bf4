"""Which pixels of an object's image are the object: its alpha, GrabCut, or SAM.

Legend: h w pixels; masks are bool (h, w), True = object.
"""

from pathlib import Path

import cv2
import numpy as np
import torch

from ldm.checkpoints import loading
from ldm.decode import LoadedImage
from ldm.device import check_finite
from ldm.files import first_line
from ldm.images import Box01, resize

OPAQUE = 127  # alpha above this, of 255, belongs to the object
PLAUSIBLE = (0.01, 0.97)  # fraction of the image that an object may fill (chosen, like what follows)
GRABCUT_SIDE = 320  # pixels; GrabCut colours need no more, and its time grows with the area
ITERATIONS = 5
RIM_FRACTION = 0.02  # fraction of each side that is taken as background
PLAIN_RIM = 0.6  # of the rim in one colour makes a plain background
SAME_COLOUR = 12.0  # largest Lab distance (8-bit scale) of rim pixels to that colour
OTHER_COLOUR = 25.0  # smallest Lab distance of pixels that stand out from it
CENTRALITY = 0.35  # distance from the middle, as a fraction of the image, at which a piece counts 1/e
SMALL_HOLE = 0.004  # fraction of the image; larger holes, as in a handle, stay open
# What makes a mask doubtful; chosen on 15 photographs with known masks: five of six bad masks are named.
TOUCHING = 0.05  # fraction of a side of the image
PART = 0.02  # fraction of the mask from which a separate piece counts
RAGGED = 0.36  # least compactness, 4 pi area / outline^2, of a mask that touches no side
BAND = (7, 7)  # pixels of GRABCUT_SIDE over which colours on either side of the outline are averaged
FAINT = 0.08  # fraction of the outline at which these colours are the same


def object_mask(image: LoadedImage, sam: Path | str | None = None) -> tuple[np.ndarray, str]:
    """Find the object of an image.

    sam:     folder of a SAM, used instead of GrabCut where no alpha channel cuts the object out
    returns: mask (h, w) and which of "alpha", "sam", "grabcut" made it
    """
    opaque = None if image.alpha_u8 is None else image.alpha_u8 > OPAQUE
    if opaque is not None and 0 < float(opaque.mean()) < 1:  # some pixels opaque, some not
        return opaque, "alpha"
    if sam is not None:
        mask, way = sam_mask(image.rgb_u8, sam), "sam"
    else:
        mask, way = grabcut_mask(image.rgb_u8), "grabcut"
    fraction, (least, most) = float(mask.mean()), PLAUSIBLE
    if not least <= fraction <= most:
        raise ValueError(
            f"the object was not found in its image: the mask found covers {fraction:.1%}, "
            f"expected {least:.0%} to {most:.0%}; pass --object-mask"
        )
    return mask, way


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


def grabcut_mask(rgb_u8: np.ndarray) -> np.ndarray:
    """GrabCut from a thin rim of background, one connected piece, at the image's size, without chance."""
    h, w = rgb_u8.shape[:2]
    scale = min(1.0, GRABCUT_SIDE / max(h, w))
    small_u8 = resize(rgb_u8, (max(1, round(h * scale)), max(1, round(w * scale))))
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
    if not ((start == cv2.GC_PR_FGD).any() and (start != cv2.GC_PR_FGD).any()):
        return np.zeros((h, w), bool)
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    unused_rectangle = (0, 0, 1, 1)
    labels, *_ = cv2.grabCut(
        cv2.cvtColor(small_u8, cv2.COLOR_RGB2BGR), start, unused_rectangle, background, foreground,
        ITERATIONS, cv2.GC_INIT_WITH_MASK,
    )  # fmt: skip
    mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    count, pieces, table, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count > 1:  # the piece with the best size for its distance from the middle of the image
        across, along = centres[1:, 0] / m - 0.5, centres[1:, 1] / n - 0.5
        weight = table[1:, cv2.CC_STAT_AREA] * np.exp(-((np.hypot(across, along) / CENTRALITY) ** 2))
        mask = pieces == 1 + int(weight.argmax())
    _, pieces, table, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small_holes = table[:, cv2.CC_STAT_AREA] < SMALL_HOLE * mask.size
    small_holes[0] = False  # piece 0 is the mask itself
    return resize(mask | small_holes[pieces], (h, w), how="linear")


@torch.inference_mode()
def sam_mask(rgb_u8: np.ndarray, folder: Path | str, box01: Box01 | None = None) -> np.ndarray:
    """SAM prompted with the box, or with the middle of the image; the candidate it trusts most."""
    from transformers import SamModel, SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    try:
        with loading():
            model = SamModel.from_pretrained(str(folder)).eval()
        processor = SamProcessor(SamImageProcessorPil.from_pretrained(str(folder)))
    except (OSError, ValueError) as error:
        raise ValueError(f"SAM folder {folder} cannot be loaded: {first_line(error)}") from error
    h, w = rgb_u8.shape[:2]
    if box01 is None:
        prompt = {"input_points": [[[w / 2, h / 2]]]}
    else:
        prompt = {"input_boxes": [[[box01[0] * w, box01[1] * h, box01[2] * w, box01[3] * h]]]}
    inputs = processor(images=rgb_u8, return_tensors="pt", **prompt).to(torch.float32)
    output = model(**inputs, multimask_output=True)
    check_finite(output.iou_scores, "segmentation network (SAM)")
    masks = processor.image_processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0]  # (1, candidates, h, w)
    return np.asarray(masks[0, int(output.iou_scores[0, 0].argmax())]).astype(bool)
