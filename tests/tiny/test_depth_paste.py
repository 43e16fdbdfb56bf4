"""Images in another order of depth: what is pasted hides what is farther, an exchanged solid is behind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import OpenShard, render_shards
from tiny.depth.paste import LEAST, Cutouts
from tiny.depth.training import load_images

SIDE, NEAR, FAR = 64, 40000, 20000


def drawn() -> tuple[Cutouts, tuple[np.ndarray, np.ndarray]]:
    """One scene: a red solid (label 1, near, the removed one) over a green one (label 2, far)."""
    red, green = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    red[10:40, 10:40], green[20:60, 20:60] = True, True
    y = np.broadcast_to(np.arange(SIDE)[:, None] * 100, (SIDE, SIDE))
    image, depth = np.full((2, 3, SIDE, SIDE), 90, np.uint8), np.stack([y, y]).astype(np.uint16)
    for view, layers in enumerate((((green, 1, FAR), (red, 0, NEAR)), ((green, 1, FAR),))):
        for mask, channel, value in layers:
            image[view][:, mask] = 0
            image[view, channel][mask] = 255
            depth[view][mask] = value
    labels = np.where(red, 1, np.where(green, 2, 0)).astype(np.uint8)
    return Cutouts(labels[None], [1], (red & green)[None], [[1, 2]]), (image, depth)


def test_without_a_fraction_nothing_changes():
    cutouts, images = drawn()
    pixels, depth = cutouts.batch(images, 12, np.random.default_rng(0), 0.0, 0.0)
    for index in range(12):
        view = int((pixels[index] == images[0][0]).all()) ^ 1
        np.testing.assert_array_equal(pixels[index], images[0][view])
        np.testing.assert_array_equal(depth[index], images[1][view])


def test_an_exchanged_solid_is_behind_the_one_that_it_hid():
    cutouts, images = drawn()
    pixels, depth = cutouts.batch(images, 16, np.random.default_rng(0), 0.0, 1.0)
    region = cutouts.hidden[0]
    changed = 0
    for index in range(16):
        if (pixels[index] == images[0][1]).all():  # the image without the solid stays as it is
            continue
        changed += 1
        assert (pixels[index, 1][region] == 255).all()  # green is seen there
        left = (cutouts.labels[0] == 1) & ~region
        assert (pixels[index, 0][left] == 255).all()
        assert depth[index][left].max() < depth[index][region].min() == FAR
        assert depth[index][left].min() > FAR - 0.2 * 65535
        others = cutouts.labels[0] != 1
        np.testing.assert_array_equal(depth[index][others], images[1][0][others])
    assert changed >= 4


def test_what_is_pasted_is_nearer_than_what_it_hides():
    cutouts, images = drawn()
    rng = np.random.default_rng(1)
    pixels, depth = cutouts.batch(images, 24, rng, 1.0, 0.0)
    moved = 0
    for index in range(24):
        # Of the two views the one that was drawn: nothing is farther than in it.
        views = [view for view in (0, 1) if (depth[index] >= images[1][view]).all()]
        assert views
        before = images[1][views[0]]
        shown = depth[index] > before
        colours = pixels[index][:, shown].T
        solid = (colours[:, 0] > colours[:, 2]) | (colours[:, 1] > colours[:, 2])
        assert solid.mean() > 0.95 if shown.any() else True
        moved += shown.sum() > LEAST
    assert moved > 12


@pytest.mark.parametrize("world", ["plain", "open"])
def test_cutouts_of_rendered_scenes(world: str, tmp_path: Path):
    settings = StoreSettings(
        out=tmp_path, count=4, size=(SIDE, SIDE), reference_size=(16, 16), world=world, smooth_edges=False
    )
    shards = [OpenShard(path) for path in render_shards(settings)]
    cutouts, images = Cutouts.read(shards), load_images(shards)
    assert len(images[0]) == 2 * len(cutouts.labels) == 8
    for index, fact in enumerate(shards[0].facts):
        assert cutouts.removed[index] == fact.removed + 1
        label, hidden = cutouts.labels[index], cutouts.hidden[index]
        assert (label[hidden] == cutouts.removed[index]).all()
        assert all(fact.movable[k - 1] and (label == k).sum() > LEAST for k in cutouts.owners[index])
        # The whole image and the one without the solid differ where it is, and there it is nearer.
        mine = label == cutouts.removed[index]
        whole, without = (images[1][2 * index + k].astype(int) for k in (0, 1))
        assert (whole[mine] >= without[mine]).all()
    first, again = (cutouts.batch(images, 6, np.random.default_rng(3), 0.6, 0.3) for _ in range(2))
    assert all(
        torch.equal(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(first, again, strict=True)
    )
