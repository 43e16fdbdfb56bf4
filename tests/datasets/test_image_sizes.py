"""Images read smaller than they are, and depth maps smaller than their image; what training moves."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.examples import PairDataset, collate_pairs
from datasets.inputs import PUBLISHED_TRAINING, PairOptions
from datasets.pairs import build_pair, model_inputs
from datasets.sources.image_source import ImageSource
from datasets.sources.readers import ObjectView, Tree, is_map_of, read_annotated
from datasets.sources.still import FolderConfig
from ldm.images import resize, write_depth, write_mask

TINY = PairOptions(size=(64, 64), reference_size=28)


def smooth(h: int, w: int) -> np.ndarray:
    """RGB (h, w, 3) uint8 without detail finer than a block of 8 pixels, asymmetric."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    return np.dstack([255 * x / w, 255 * y / h, 127 + 100 * np.sin(3 * x / w)]).astype(np.uint8)


def write_source(root: Path, h: int, w: int, side: int, suffix: str = ".jpg") -> FolderConfig:
    """An image with a square object of `side` pixels, its mask, its depth map a quarter as high and wide."""
    mask = np.zeros((h, w), bool)
    mask[h // 4 : h // 4 + side, w // 8 : w // 8 + side] = True
    write_mask(root / "masks/a.png", mask)
    (root / "images").mkdir()
    Image.fromarray(smooth(h, w)).save(root / f"images/a{suffix}", quality=95)
    write_depth(root / "depth/a.png", np.linspace(0, 1, (h // 4) * (w // 4)).reshape(h // 4, w // 4))
    return FolderConfig(root=root)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("size", [(120, 80), (75, 121)])
def test_an_image_read_smaller_is_its_average(tmp_path, suffix, shrink, size) -> None:
    image_u8 = smooth(*size)
    Image.fromarray(image_u8).save(tmp_path / f"a{suffix}", quality=95)
    small_u8, turn = read_annotated(tmp_path / f"a{suffix}", size, shrink)
    want_hw = -(-size[0] // shrink), -(-size[1] // shrink)
    more = [side * shrink - whole for side, whole in zip(want_hw, size, strict=True)]
    if suffix == ".jpg":  # blocks of pixels, of which the last ones stand over the border
        image_u8 = cv2.copyMakeBorder(image_u8, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
    want = resize(image_u8, want_hw)
    assert turn is None
    assert small_u8.shape == want.shape
    assert np.abs(small_u8.astype(int) - want).mean() < 2


@pytest.mark.parametrize("shrink", [1, 2, 4])
@pytest.mark.parametrize("size", [(80, 119), (120, 80), (81, 120)])
def test_a_wrong_size_is_refused_however_the_image_is_read(tmp_path, shrink, size) -> None:
    Image.fromarray(smooth(80, 120)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=rf"a.jpg is 120 x 80 pixels, its mask is {size[1]} x {size[0]}"):
        read_annotated(tmp_path / "a.jpg", size, shrink)


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("stored", [False, True])
def test_exif_orientation_holds_however_the_image_is_read(tmp_path, shrink, stored) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(smooth(80, 120)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright_u8 = np.rot90(smooth(80, 120), -1)  # 120 x 80
    size, want = ((80, 120), smooth(80, 120)) if stored else ((120, 80), upright_u8)
    rgb_u8, turn = read_annotated(tmp_path / "a.jpg", size, shrink)
    assert (turn is not None) == stored
    half = resize(np.ascontiguousarray(want), (size[0] // shrink, size[1] // shrink))
    assert np.abs(rgb_u8.astype(int) - half).mean() < 4


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((100, 200), True), ((50, 100), True), ((12, 25), True), ((50, 99), True), ((50, 96), False),
     ((50, 50), False), ((200, 100), False), ((101, 200), False), ((200, 400), False), ((25, 100), False)],
)  # fmt: skip
def test_a_map_has_its_image_s_size_or_is_smaller_with_its_proportions(tmp_path, shape, fits) -> None:
    view = ObjectView(tmp_path / "a.jpg", lambda: np.ones((100, 200), bool), Tree(tmp_path, tmp_path))
    write_depth(tmp_path / "a.png", np.tile(np.linspace(0, 1, shape[1]), (shape[0], 1)))
    assert is_map_of(shape, (100, 200)) == fits
    if not fits:
        wrong = rf"a.png is {shape[1]} x {shape[0]} pixels, its image is 200 x 100 .*needs its proportions"
        with pytest.raises(ValueError, match=wrong):
            view.read_depth((100, 200))
        return
    for shrink in (1, 2):
        depth_01 = view.read_depth((100, 200), None, shrink)
        assert depth_01.shape == (100 // shrink, 200 // shrink)
        assert np.abs(depth_01 - np.linspace(0, 1, 200 // shrink)).max() < 0.05


@pytest.mark.parametrize(
    ("options", "side", "shrink"),
    [(TINY, 255, 1), (TINY, 511, 1), (TINY, 512, 2), (TINY, 1024, 4), (PUBLISHED_TRAINING, 1024, 1),
     (PairOptions(), 717, 1), (PairOptions(), 718, 2), (None, 1024, 1)],
)  # fmt: skip
def test_images_are_read_as_small_as_their_object_allows(tmp_path, options, side, shrink) -> None:
    source = write_source(tmp_path, 1500, 1500, side).open()
    source.options = options
    inputs = source.example(0, np.random.default_rng(0))
    side_of = 1500 // shrink
    assert inputs.background_u8.shape == (side_of, side_of, 3)
    for name in ("reference_mask", "target_mask", "background_depth_01"):
        assert getattr(inputs, name).shape == (side_of, side_of)


def test_a_pair_hardly_changes_where_its_image_is_read_smaller(tmp_path) -> None:
    source = write_source(tmp_path, 1536, 2048, 600).open()
    assert isinstance(source, ImageSource)
    pairs = []
    for source.options in (None, replace(TINY, depth_hint="target")):
        pairs.append(build_pair(source.example(0, np.random.default_rng(0)), TINY))
    whole, small = pairs
    assert small.crop.background_size == (768, 1024)
    for name in ("target_pm1", "reference_01", "depth_01"):
        assert (getattr(whole, name) - getattr(small, name)).abs().mean() < 0.02
    assert (whole.edit_mask != small.edit_mask).float().mean() < 0.02


def test_training_moves_bytes_only(tmp_path) -> None:
    dataset = PairDataset(write_source(tmp_path, 300, 400, 150).open(), PairOptions(), seed=0)
    batch = collate_pairs([dataset[0]])
    read = model_inputs(batch)
    assert set(batch) == {"reference_u8", "target_u8", "hint_u8", "regions", "scene_depth_01", "dynamics"}
    assert sum(value.numel() * value.element_size() for value in batch.values()) <= 3.2e6  # 17.9 MB before
    assert read["detail_pm1"].shape == (1, 4, 512, 512)
    assert read["depth_01"].shape == read["target_pm1"].shape == (1, 3, 512, 512)
    for name, value in read.items():
        assert torch.equal(value[0], getattr(dataset[0], name))


def test_one_thread_of_opencv_in_every_worker() -> None:
    from cldm.training.data import PairData
    from cldm.training.settings import DataConfig, RunConfig

    data = PairData(RunConfig(Path("run"), data=DataConfig(workers=1)), 1)
    data.__dict__["dataset"] = ThreadCount()
    loader = data.train_dataloader()
    loader.collate_fn = lambda items: items[0]
    assert list(loader) == [1]
    assert loader.pin_memory == torch.cuda.is_available()


class ThreadCount:
    def __getitem__(self, k: int) -> int:
        return cv2.getNumThreads()
