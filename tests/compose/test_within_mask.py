"""`--within-mask`: nothing outside the target mask changes, in any mode and at any size."""

import numpy as np
import pytest

from datasets.fusion import MODES
from ldm.images import read_image, write_depth, write_mask, write_png
from tests.images import room, room_depth


def changed(case, *flags, size=(96, 128)):
    h, w = size
    mask = np.zeros(size, bool)
    mask[h // 2 : h - 7, w // 3 : 2 * w // 3 + 5] = True
    write_png(case.folder / "room.png", room(h, w))
    write_depth(case.folder / "depth.png", room_depth(h, w))
    write_mask(case.folder / "target.png", mask)
    assert case.run(*flags, "--target-mask", case.folder / "target.png", without=["--box", "--depth"]) == 0
    return (read_image(case.out).rgb_u8 != room(h, w)).any(2), mask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(96, 128), (201, 333), (64, 64)], ids=str)
def test_only_the_mask_changes(case, mode, size):
    pixels, mask = changed(case, "--mode", mode, "--within-mask", size=size)
    assert pixels[mask].any()
    assert not pixels[~mask].any()
    assert case.report()["drift"]["changed_outside"] == 0


@pytest.mark.parametrize("mode", ["replace", "place"])
def test_without_it_the_edge_of_the_mask_is_grown(case, mode):
    pixels, mask = changed(case, "--mode", mode)
    assert pixels[~mask].any()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--within-mask"], "--within-mask needs --target-mask"),
        (
            ["--within-mask", "--compat", "bifrost", "--target-mask", "mask.png"],
            "--within-mask does not go with --compat",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(case, flags, text, capsys):
    assert case.run(*flags) == 2
    assert text in capsys.readouterr().err
