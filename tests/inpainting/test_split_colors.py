"""One image of coloured masks becomes masks: exact colours, soft edges, alpha, and what is refused."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from inpainting.prompts import COLORS, rgb_of_color, split_colors
from ldm.decode import LoadedImage
from ldm.images import read_image


def discs(*names: str, ground=(0, 0, 0), soft: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """(90, 60 per name, 3) with a disc in each colour, and the masks of the discs."""
    image = np.full((90, 60 * len(names), 3), ground, np.uint8)
    masks = []
    for number, name in enumerate(names):
        flat = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(flat, (30 + 60 * number, 45), 22, 1, -1)
        masks.append(flat > 0)
        kind = cv2.LINE_AA if soft else cv2.LINE_8
        cv2.circle(image, (30 + 60 * number, 45), 22, rgb_of_color(name), -1, kind)
    return image, masks


@pytest.mark.parametrize("names", [("red",), ("red", "green", "blue"), tuple(COLORS)])
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (90, 100, 110)])
def test_every_colour_is_a_mask_in_the_order_of_the_palette(names, ground):
    image_u8, masks = discs(*names, ground=ground)
    found = split_colors(LoadedImage(image_u8))
    assert len(found) == len(names)
    assert all(np.array_equal(mask, truth) for mask, truth in zip(found, masks, strict=True))


def test_the_order_is_that_of_the_palette_not_of_the_sizes():
    image_u8, (green, red) = discs("green", "red")
    image_u8[:3, :] = rgb_of_color("green")
    green[:3] = True
    found = split_colors(LoadedImage(image_u8))
    assert np.array_equal(found[0], red)
    assert np.array_equal(found[1], green)


def test_soft_edges_go_to_the_nearer_colour():
    image_u8, masks = discs("red", "blue", ground=(255, 255, 255), soft=True)
    found = split_colors(LoadedImage(image_u8))
    assert len(found) == 2
    for mask, truth in zip(found, masks, strict=True):
        assert (mask & truth).sum() > 0.93 * (mask | truth).sum()


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 90}), ("WEBP", {"quality": 90}), ("PNG", {})]
)
def test_files_of_any_format(tmp_path, kind, options):
    image_u8, masks = discs("red", "cyan", "purple")
    buffer = io.BytesIO()
    Image.fromarray(image_u8).save(buffer, kind, **options)
    path = tmp_path / f"masks.{kind.lower()}"
    path.write_bytes(buffer.getvalue())
    found = split_colors(read_image(path))
    assert len(found) == 3
    for mask, truth in zip(found, masks, strict=True):
        assert (mask & truth).sum() > 0.9 * (mask | truth).sum()


def test_colours_of_other_programs_and_transparency():
    image_u8, masks = discs("red", "green")
    image_u8[masks[0]], image_u8[masks[1]] = (237, 28, 36), (34, 177, 76)  # of a drawing program
    alpha_u8 = np.where(masks[0], 0, 255).astype(np.uint8)
    assert [mask.sum() for mask in split_colors(LoadedImage(image_u8))] == [mask.sum() for mask in masks]
    (only,) = split_colors(LoadedImage(image_u8, alpha_u8))
    assert np.array_equal(only, masks[1])


@pytest.mark.parametrize(
    "image_u8",
    [
        np.full((40, 50, 3), 200, np.uint8),
        np.zeros((40, 50, 3), np.uint8),
        np.arange(40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8) * np.uint8(1),
    ],
    ids=["gray", "black", "noise"],
)
def test_an_image_without_coloured_masks_is_refused(image_u8):
    if image_u8.std() > 50:  # every colour is rare
        image_u8 = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match="holds no coloured mask: every pixel is gray, transparent, or of a rare"
    ):
        split_colors(LoadedImage(image_u8))
