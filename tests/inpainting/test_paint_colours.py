"""Painting into images with a profile or with transparency."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import PaintResult, paint
from ldm.decode import LoadedImage
from ldm.images import read_image
from tests.images import room
from tests.inpainting.small_inpainter import QUICK, box, small_inpainter
from tests.profiles import ADOBE, P3, in_profile, rgb_profile

MASK = box(96, 128, 0.2, 0.8, 0.25, 0.75)
MUTED = (64 + room() * 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("kl"))


def painted(pipe: Inpainter, image: LoadedImage | np.ndarray, **options: object) -> PaintResult:
    """One sample of one region."""
    return paint(image, [(MASK, "a red cube")], pipe, 3, replace(QUICK, **options), progress=False)


@pytest.mark.parametrize("profile", [rgb_profile(ADOBE), rgb_profile(P3, 2.2)], ids=["adobe", "p3"])
def test_images_that_look_alike_are_painted_alike(tmp_path: Path, pipe: Inpainter, profile: bytes) -> None:
    own_u8 = in_profile(MUTED, profile)
    Image.fromarray(own_u8).save(tmp_path / "a.png", icc_profile=profile)
    result, plain = painted(pipe, read_image(tmp_path / "a.png")), painted(pipe, MUTED)
    done = result.images[0]
    assert np.array_equal(done.own_u8[~MASK], own_u8[~MASK])
    assert result.report["drift"][0]["changed_outside"] == 0
    assert done.icc_profile == profile
    difference = np.abs(done.rgb_u8.astype(int) - plain.image_u8)
    assert difference[MASK].mean() < 2  # two quantizations, and what the network makes of them
    assert difference.mean() < 1


@pytest.mark.parametrize("under", [0, 128, 255])
@pytest.mark.parametrize("feather", [0.0, 0.1])
def test_what_is_painted_into_transparency_is_seen(pipe: Inpainter, under: int, feather: float) -> None:
    image = LoadedImage(MUTED, np.full((96, 128), under, np.uint8))
    done = painted(pipe, image, feather=feather).images[0]
    alpha_u8 = done.alpha_u8
    assert alpha_u8 is not None
    assert (alpha_u8[~MASK] == under).all()
    assert alpha_u8[48, 64] == 255
    inside = alpha_u8[48, 32:64].astype(int)  # from the left edge of the mask to its middle
    assert (np.diff(inside) >= 0).all()
    assert (inside[0] == 255) == (feather == 0 or under == 255), "feathered like the colours"
    opaque = painted(pipe, MUTED, feather=feather).image_u8
    if under == 255:
        assert np.array_equal(done.own_u8, opaque)
    if under == 0:
        hard = painted(pipe, MUTED, feather=0.0).image_u8
        assert np.array_equal(done.own_u8[alpha_u8 > 0], hard[alpha_u8 > 0]), "no fringe of hidden colours"


def test_the_whole_decoded_image_is_opaque(pipe: Inpainter) -> None:
    image = LoadedImage(MUTED, np.zeros((96, 128), np.uint8))
    done = painted(pipe, image, paste_back=False).images[0]
    assert done.alpha_u8 is not None
    assert (done.alpha_u8 == 255).all()
    assert np.array_equal(done.own_u8, painted(pipe, MUTED, paste_back=False).image_u8)
