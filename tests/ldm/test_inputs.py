"""Bad images, places and options are refused in one line that names the field."""

import numpy as np
import pytest

from datasets.inputs import Augment, PairOptions
from ldm.settings.config import load_config
from tests.datasets.test_pairs import sample


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"box01_xyxy": (0.5, 0.1, 0.4, 0.2)}, "inverted"),
        ({"depth_range": (0.5, 0.4)}, "far <= near"),
        ({"depth_range": (float("nan"), 0.4)}, "far <= near"),
        ({"mode": "plaec"}, "unknown mode"),
        ({"mode": "inpaint", "target_mask": None}, "needs a target mask"),
        ({"box01_xyxy": None}, "needs a box"),
        ({"reference_mask": np.zeros((72, 80), bool)}, "reference_mask is empty"),
        ({"reference_mask": np.ones((70, 80), bool)}, "80 x 70 pixels, but reference_u8 is 80 x 72"),
        ({"background_depth_01": np.zeros((9, 9), np.float32)}, "background_depth_01 is 9 x 9"),
        ({"reference_mask": np.pad(np.ones((7, 7), bool), ((0, 65), (0, 73)))}, "at least 8"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(changes, reason):
    with pytest.raises(ValueError, match=reason) as error:
        sample(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hf_mode=gray", "gray255"),
        ("size=[64,96]", "square"),
        ("crop_ratio=0.5", "crop_ratio"),
        ("mask_pad=0", "mask_pad"),
        ("augment.levels=[0,0,0,0,0]", "levels"),
        ("crop_ration=2", "crop_ratio"),
    ],
)
def test_bad_options_are_refused_with_the_key(override, reason):
    with pytest.raises(ValueError, match=reason):
        load_config(PairOptions, None, [override])


def test_options_come_from_text():
    options = load_config(PairOptions, None, ["size=[96,96]", "max_stretch=100", "augment.flip=0.5"])
    assert options == PairOptions(size=(96, 96), max_stretch=100.0, augment=Augment(flip=0.5))
