"""Properties of finding the object in its image."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from ldm.decode import LoadedImage
from ldm.experts.segment import corrected_mask, mask_at, mask_doubts, object_mask, sam_mask, things
from ldm.images import read_image, read_mask
from tests.ldm.small_detectors import sam

# Two objects in one image, or an object cut off by the image's edge, have no answer without a hint.
AMBIGUOUS = {"teapot_04", "cat2_03", "dog_00"}


def painted(
    background: str, size: tuple[int, int] = (240, 320), cut_off: bool = False
) -> tuple[LoadedImage, np.ndarray]:
    """A shaded red and yellow body on a painted background, and its true mask."""
    h, w = size
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    truth = ((x - w / 2) / (w * 0.2)) ** 2 + ((y - h * (0.85 if cut_off else 0.5)) / (h * 0.3)) ** 2 < 1
    body = (
        np.where((x // (w / 16) % 2 < 1)[..., None], (210, 40, 30), (230, 190, 40))
        * (1.1 - 0.5 * x / w)[..., None]
    )
    paper = {
        "white": np.full((h, w, 3), 250.0),
        "gradient": np.dstack([90 + 90 * y / h, 120 + 60 * y / h, 160 + 0 * y]),
        "texture": 90
        + cv2.GaussianBlur(rng.normal(0, 90, (h, w, 1)).astype(np.float32), (0, 0), 2)[..., None]
        + np.zeros(3),
    }[background]
    rgb_u8 = np.clip(np.where(truth[..., None], body, paper) + rng.normal(0, 3, (h, w, 3)), 0, 255).astype(
        np.uint8
    )
    return LoadedImage(rgb_u8), truth


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("background", ["white", "gradient", "texture"])
def test_grabcut_finds_a_painted_body(background: str) -> None:
    image, truth = painted(background)
    mask, how = object_mask(image)
    assert (how, mask.shape, mask.dtype) == ("grabcut", truth.shape, np.dtype(bool))
    assert iou(mask, truth) > 0.95


def test_a_body_that_touches_the_rim_of_a_plain_image_is_whole() -> None:
    image, truth = painted("white", cut_off=True)
    assert iou(object_mask(image)[0], truth) > 0.95


def test_large_and_small_images() -> None:
    for size in ((900, 1200), (48, 64)):
        image, truth = painted("gradient", size)
        assert iou(object_mask(image)[0], truth) > 0.9, size


def test_the_same_image_gives_the_same_mask() -> None:
    image, _ = painted("texture")
    first, _ = object_mask(image)
    cv2.setRNGSeed(99)
    assert np.array_equal(object_mask(image)[0], first)


def test_alpha_is_taken_when_it_tells() -> None:
    image, truth = painted("texture")
    cut_out = LoadedImage(image.rgb_u8, (truth * 255).astype(np.uint8))
    mask, how = object_mask(cut_out)
    assert how == "alpha"
    assert np.array_equal(mask, truth)
    opaque = LoadedImage(image.rgb_u8, np.full(truth.shape, 255, np.uint8))
    assert object_mask(opaque)[1] == "grabcut"


def test_nothing_to_find_is_said() -> None:
    for rgb_u8 in (np.full((60, 80, 3), 128, np.uint8), np.zeros((3, 3, 3), np.uint8)):
        with pytest.raises(ValueError, match="--object-mask"):
            object_mask(LoadedImage(rgb_u8))


@pytest.mark.parametrize("way", ["grabcut", "alpha"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_box_chooses_one_of_two_things(way: str, side: int) -> None:
    image, truth = painted("gradient")
    both, masks = np.hstack([image.rgb_u8, image.rgb_u8]), np.hstack([truth, truth])
    alpha_u8 = (masks * 255).astype(np.uint8) if way == "alpha" else None
    box01 = ((0.13, 0.2, 0.37, 0.8), (0.63, 0.2, 0.87, 0.8))[side]
    mask, how = object_mask(LoadedImage(both, alpha_u8), box01=box01)
    wanted = masks.copy()
    wanted[:, 320 * (1 - side) : 320 * (2 - side)] = False
    assert how == way
    assert iou(mask, wanted) > 0.95
    assert len(things(masks)) == 2


def test_things_are_pieces_of_some_size_the_largest_first() -> None:
    mask = drawn((10, 20, 60, 120), (100, 20, 300, 200), (2, 230, 6, 234))
    assert things(mask) == [(100 / 320, 20 / 240, 300 / 320, 200 / 240), (10 / 320, 20 / 240, 60 / 320, 0.5)]
    assert things(np.zeros((4, 4), bool)) == []


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam(tmp_path_factory.mktemp("models") / "sam")


@pytest.mark.parametrize("box01", [None, (0.2, 0.2, 0.8, 0.8)])
def test_sam_gives_a_mask_of_the_images_size(
    sam_folder: Path, box01: tuple[float, float, float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.experts.segment.PLAUSIBLE", (0.0, 1.0))  # an untrained network finds anything
    image, truth = painted("white")
    mask = sam_mask(image.rgb_u8, sam_folder, box01)
    assert (mask.shape, mask.dtype) == (truth.shape, np.dtype(bool))
    found, how = object_mask(image, sam=sam_folder)
    assert how == "sam"
    assert box01 is not None or np.array_equal(found, mask)


def test_a_folder_without_sam_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"SAM folder {tmp_path} cannot be loaded"):
        object_mask(painted("white")[0], sam=tmp_path)


@cache
def photographs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and found mask of every photograph of an object, by its name."""
    images = {path.stem: read_image(path) for path in sorted((folder / "objects").glob("*.jpg"))}
    return {name: (image.rgb_u8, object_mask(image)[0]) for name, image in images.items()}


def test_photographs_of_single_objects(test_data: Path) -> None:
    folder = test_data / "data" / "composite"
    overlap = {}
    for name, (_, mask) in photographs(folder).items():
        overlap[name] = iou(mask, read_mask(folder / "object_masks" / f"{name}.png"))
    clear = {name: value for name, value in overlap.items() if name not in AMBIGUOUS}
    assert min(clear.values()) > 0.85, overlap
    assert np.mean(list(overlap.values())) > 0.8, overlap


def drawn(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A mask of boxes (x0, y0, x1, y1)."""
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


STRIPS = [(90, 60, 230, 180), *((20, y, 300, y + 3) for y in range(70, 180, 20))]
DOUBTFUL = {
    "clear": ([(90, 60, 230, 180)], []),
    "at a border": ([(90, 100, 230, 240)], ["it touches the lower border of the image"]),
    "at two borders": ([(0, 0, 200, 150)], ["it touches the upper and left border of the image"]),
    "one corner pixel": ([(90, 60, 230, 180), (319, 239, 320, 240)], []),
    "strips of the background": (STRIPS, ["its outline is ragged"]),
    "two things": ([(30, 60, 140, 180), (180, 60, 290, 180)], ["its outline is ragged"]),
    "a line": ([(30, 118, 290, 124)], ["its outline is ragged"]),
}


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubts_of_a_mask_name_what_is_wrong(name: str, scale: int) -> None:
    boxes, reasons = DOUBTFUL[name]
    mask = drawn(*boxes)
    rgb_u8 = np.where(mask[..., None], (200, 60, 40), (40, 60, 200)).astype(np.uint8)
    mask, rgb_u8 = (np.repeat(np.repeat(each, scale, 0), scale, 1) for each in (mask, rgb_u8))
    doubts = mask_doubts(rgb_u8, mask)
    assert len(doubts) == len(reasons)
    assert all(doubt.startswith(reason) for doubt, reason in zip(doubts, reasons, strict=True))


def test_an_outline_without_contrast_is_named_with_its_fraction() -> None:
    mask = drawn((90, 60, 230, 180))
    rgb_u8 = np.full((240, 320, 3), 120, np.uint8)
    rgb_u8[60:180, 90:160] = (220, 40, 40)  # half of the object differs from the background
    (doubt,) = mask_doubts(rgb_u8, mask)
    fraction = int(doubt.partition("%")[0])
    assert 45 < fraction < 60
    assert doubt.endswith("% of its outline has one colour on both sides")
    assert mask_doubts(np.full((240, 320, 3), 120, np.uint8), mask) == [f"100{doubt[len(str(fraction)) :]}"]


def test_bad_masks_of_photographs_are_doubted(test_data: Path) -> None:
    found = photographs(test_data / "data" / "composite")
    silent = {name for name, (rgb_u8, mask) in found.items() if not mask_doubts(rgb_u8, mask)}
    assert not silent & AMBIGUOUS
    assert len(silent) >= 5


def blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two discs of one colour on a ground of another (120, 160, 3), and their masks."""
    y, x = np.mgrid[:120, :160]
    left, right = ((x - cx) ** 2 + (y - 60) ** 2 < 25**2 for cx in (40, 115))
    ground = np.dstack([90 + 0 * x, 120 + x // 8, 140 + y // 8])
    return np.where((left | right)[..., None], (200, 60, 40), ground).astype(np.uint8), left, right


@pytest.mark.parametrize("point", [(40 / 160, 0.5), (115 / 160, 0.5), (115 / 160, 0.6), (100 / 160, 0.5)])
def test_a_click_finds_the_thing_under_it(point: tuple[float, float]) -> None:
    image_u8, left, right = blobs()
    found, truth = mask_at(image_u8, point), left if point[0] < 0.5 else right
    assert (found & truth).sum() > 0.9 * (found | truth).sum()
    again = mask_at(image_u8, point)
    assert np.array_equal(found, again)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (64, 64), (900, 700)])
@pytest.mark.parametrize("point", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.999)])
def test_a_click_finds_something_everywhere(size: tuple[int, int], point: tuple[float, float]) -> None:
    found = mask_at(np.full((*size, 3), 90, np.uint8), point)
    x, y = (min(int(value * side), side - 1) for value, side in zip(point, size[::-1], strict=True))
    assert found.shape == size
    assert found.dtype == bool
    assert found[y, x]


def test_a_mark_adds_what_looks_like_it_and_takes_it_away() -> None:
    image_u8, left, right = blobs()
    marks = np.zeros(left.shape, np.uint8)
    marks[58:62, 113:117] = 1
    both = corrected_mask(image_u8, left, marks)
    assert (both & (left | right)).sum() > 0.95 * (left | right).sum()
    assert both[marks == 1].all()
    marks[:] = 0
    marks[30:90, 90:140] = 2
    one = corrected_mask(image_u8, left | right, marks)
    assert not one[marks == 2].any()
    assert one[left].mean() > 0.95


@pytest.mark.parametrize("value", [0, 1, 2])
@pytest.mark.parametrize("start", [False, True])
def test_marks_hold_also_where_nothing_else_is_known(value: int, start: bool) -> None:
    marks = np.full((40, 50), value, np.uint8)
    found = corrected_mask(np.full((40, 50, 3), 128, np.uint8), np.full((40, 50), start), marks)
    assert (found == {0: start, 1: True, 2: False}[value]).all()
