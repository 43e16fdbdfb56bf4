"""Floors and walls behind what is erased, in their own perspective: the texture of a plane, moved along it.

Where an image is scaled by the distance of a plane, a texture that repeats on the plane repeats by shifts of
the image (Huang et al. 2014, Image Completion using Planar Structure Guidance: planes rectified, and textures
continued by translation). Of all shifts the one counts that continues what is seen at the rim of the hole.
What none continues is filled by exemplars of the rectified plane, where the depth shows its horizon.
Legend: h w pixels of a window around the hole, n m of the rectified window.
"""

import cv2
import numpy as np

from datasets.planes import TOLERANCE, Behind
from ldm.experts.erase import EXEMPLAR_SIDE, LEAST_EXEMPLARS, OPENCV_SIDE, from_exemplars, window_around

# All are chosen; AGREE, RIM and SPREAD on rendered rooms and photographs (benchmarks.erase).
WINDOW = 4.0  # side of the window, over that of the hole
ON_PLANE, ON_GROUND = 2 * TOLERANCE, 8 * TOLERANCE  # depth; pixels lie within it: of estimated depth are bent
SPREAD = 3.0  # distance of what is rectified, over that of the middle of the hole, or the reverse
RIM, LEAST_RIM = 0.25, 6  # width of the rim that is compared, over the square root of the area; in pixels
SEEN = 0.6  # of the rim that a shift must show
COVERED = 0.97  # of the hole that a shift must fill
AGREE = 0.2  # most error at the rim, over the variance there
EASED = 0.6, 0.3  # both, where exemplars of the plane fill what is left, not those of the image
PATCH = 3  # pixels around the middle of an exemplar; the best of 2, 3 and 5 in rooms
FLAT = 16.0  # least variance, squared gray levels: less is no texture
FEWEST = 16  # pixels of a hole
LIGHT = 0.35  # reach of the light at the rim into the hole, over the square root of the area


def continue_planes(
    rgb_u8: np.ndarray, hole: np.ndarray, unknown: np.ndarray, behind: Behind,
    ground: np.ndarray | None, horizon_d: float, exemplars: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The image (H, W, 3) uint8, its hole (H, W) bool filled where a plane goes on behind it and agrees with
    its rim or has exemplars, and these pixels (H, W) bool; none where no plane is known.

    rgb_u8: with a plain fill in the hole, or its rim takes on what was there
    unknown: (H, W) bool, what is not copied, the hole and more;  behind: of the hole, by `planes_behind`
    ground, horizon_d: plane (3,) that counts where none is found around the hole, and depth at infinity
    exemplars: of the plane count where no shift agrees
    """
    behind_01, planes, join = behind
    within = ON_PLANE if len(planes) else ON_GROUND
    if not len(planes) and ground is not None:
        planes = ground[None]
    (height, width), filled_u8, done = hole.shape, rgb_u8.copy(), np.zeros_like(hole)
    x0, y0, x1, y1 = window_around(hole, OPENCV_SIDE, WINDOW)
    part, scale = np.s_[y0:y1, x0:x1], np.array([1 / width, 1 / height, 1])
    x, y = np.arange(x0, x1), np.arange(y0, y1)[:, None]
    depths = [a * x + b * y + c for a, b, c in planes * scale]
    for plane, depth in zip(planes, depths, strict=True):
        on = (abs(depth - behind_01[part]) < within) & ((depth == join(depths, axis=0)) | ~hole[part])
        a, b, c = (plane - (0, 0, horizon_d)) * scale
        nearness = np.array([a, b, c + a * x0 + b * y0])  # inverse distance in the window, up to a factor
        continued = _continue(rgb_u8[part], hole[part] & on, on & ~unknown[part], nearness, exemplars)
        if continued is not None:
            colours_u8, taken = continued
            filled_u8[part][taken], done[part][taken] = colours_u8[taken], True
    return filled_u8, done


def _continue(
    rgb_u8: np.ndarray, hole: np.ndarray, known: np.ndarray, nearness: np.ndarray, exemplars: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Colours (h, w, 3) uint8 of the part of a hole that one plane fills, and which pixels these are.

    hole, known: (h, w) bool, of the plane
    nearness: (3,), inverse distance of the plane a x + b y + c in pixels, up to a factor
    """
    y, x = np.nonzero(hole)
    (h, w), slope = hole.shape, nearness[:2]
    near = nearness[0] * np.arange(w) + nearness[1] * np.arange(h)[:, None] + nearness[2]
    if len(y) < FEWEST or near[hole].min() <= 0:
        return None
    middle = np.sqrt(near[hole].min() * near[hole].max())
    centre = np.array([x.mean(), y.mean()])
    if steep := slope @ slope:  # to where the rectified image has the size of the image
        centre += slope * (middle - slope @ centre - nearness[2]) / steep
    used = (known | hole) & (near > middle / SPREAD) & (near < middle * SPREAD)
    if not used.any():
        return None
    y, x = np.nonzero(used)
    u, v = ((line - start) * middle / near[used] for line, start in zip((x, y), centre, strict=True))
    k = min(1.0, EXEMPLAR_SIDE / max(np.ptp(u), np.ptp(v), 1))
    n, m = (int(np.ptp(line) * k) + 2 for line in (v, u))
    plane = [[1, 0, -centre[0]], [0, 1, -centre[1]], nearness / middle]
    into = np.array([[k, 0, -k * u.min()], [0, k, -k * v.min()], [0, 0, 1]]) @ plane

    def rectified(image: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
        return cv2.warpPerspective(image.astype(np.float32), into, (m, n), flags=how)

    gap = rectified(hole) > 0
    source = (rectified(used & known) > 0.99) & ~gap
    gap = (cv2.dilate(gap.astype(np.uint8), np.ones((5, 5))) > 0) & ~source  # no seam where planes meet
    flat, limits = rectified(rgb_u8, cv2.INTER_CUBIC), EASED if exemplars else (COVERED, AGREE)
    colours, there = _moved(flat, gap, source, *limits) or (flat, source)
    left = gap & ~there
    if exemplars and there.sum() >= LEAST_EXEMPLARS * left.sum() > 0:
        flat_u8 = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
        found_u8 = from_exemplars(flat_u8, left, there, left, PATCH)
        colours, there = np.where(left[..., None], found_u8, colours).astype(np.float32), there | left
    if not (gap & there).any():
        return None
    image = cv2.warpPerspective(colours, into, (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    done = cv2.warpPerspective(there.astype(np.float32), into, (w, h), flags=cv2.WARP_INVERSE_MAP) > 0.99
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), hole & done


def _moved(
    image: np.ndarray, gap: np.ndarray, source: np.ndarray, covered: float, agree: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """The image (n, m, 3) float32 with its gap filled by one shift of its source, both (n, m) bool, in the
    light of the rim; and what is filled or source. None where no shift agrees with the rim.

    covered: of the gap, that the shift must fill;  agree: most error at the rim, over the variance there
    """
    side = np.sqrt(gap.sum())
    x, y, m, n = cv2.boundingRect(gap.astype(np.uint8))
    width = max(LEAST_RIM, int(RIM * side))
    top, left = max(y - width, 0), max(x - width, 0)
    part = np.s_[top : y + n + width, left : x + m + width]
    away = cv2.distanceTransform((~gap).astype(np.uint8), cv2.DIST_L2, 3)
    rim = source & (away <= width)
    if not rim.any():
        return None
    # Squared errors at the rim for all shifts, by correlations; those may leave the image.
    weight, (across, down) = rim[part].astype(np.float32), (rim[part].shape[1] // 2, rim[part].shape[0] // 2)
    mean = image[source].mean(axis=0)
    there = cv2.copyMakeBorder(source.astype(np.float32), down, down, across, across, cv2.BORDER_CONSTANT)
    values = np.where(source[..., None], image - mean, 0).astype(np.float32)
    shown = cv2.copyMakeBorder(values, down, down, across, across, cv2.BORDER_CONSTANT)
    wanted = values[part] * weight[..., None]

    def total(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return cv2.matchTemplate(image, kernel, cv2.TM_CCORR)

    count = np.maximum(total(there, weight), 1)
    error = total(there, np.square(wanted).sum(axis=2)) - 2 * total(shown, wanted)
    error += total(np.square(shown).sum(axis=2), weight)
    for one, other in zip(cv2.split(shown), cv2.split(wanted), strict=True):  # less the difference in light
        error -= np.square(total(one, weight) - total(there, other)) / count
    covers = total(there, gap[part].astype(np.float32)) >= covered * gap.sum()
    error = np.where(covers & (count > SEEN * rim.sum()), np.maximum(error / count, 0) / 3, np.inf)
    row, column = np.unravel_index(error.argmin(), error.shape)
    texture = float(image[rim].var(axis=0).mean())
    if texture < FLAT or not error[row, column] <= agree * texture:
        return None
    shift = np.array([[1.0, 0, left + across - column], [0, 1, top + down - row]])
    copied, seen = (
        cv2.warpAffine(each, shift, gap.shape[::-1], flags=cv2.INTER_NEAREST)
        for each in (image, source.astype(np.float32))
    )
    both, reach = (rim * seen)[..., None], max(2.0, LIGHT * side)
    light = cv2.GaussianBlur((image - copied) * both, (0, 0), reach)
    spread, taken = np.maximum(cv2.GaussianBlur(both, (0, 0), reach), 1e-4), gap & (seen > 0)
    filled = np.where(taken[..., None], copied + light / spread[..., None], image)
    return filled.astype(np.float32), taken | source
