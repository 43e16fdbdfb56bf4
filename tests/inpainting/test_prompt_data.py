"""Data of the prompt writer: items follow from seed and name, colours are kept rightly, labels on answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.settings import LlavaOptions
from inpainting.prompts import COLORS, GRAY, read_prompt
from tests.inpainting.small_paintings import save, write_paintings

PUBLISHED_KEYS = {
    *("PIL_images", "PIL_masked_images", "entity_captions", "entity_concepts", "entity_colors"),
    *("entity_noun_chunk_roots", "targets"),
}
OUR_KEYS = {"image_stems", "entity_names", "entity_paths"}
TIGHT = 0.1  # of the small paintings three regions cover about 11 %


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paintings(tmp_path_factory.mktemp("paintings"), {"train": 9, "val": 9})


def dataset(folder: Path, **more: Any) -> LlavaDataset:
    where = {name: more.pop(name) for name in ("split", "seed") if name in more}
    return LlavaDataset(LlavaOptions(folder, **more), **{"split": "val", **where})


def shown(item: dict[str, Any]) -> set[tuple[int, ...]]:
    """The pure colours of the masked image that its original lacks."""
    before = np.asarray(item["PIL_images"]).reshape(-1, 3)
    after = np.asarray(item["PIL_masked_images"]).reshape(-1, 3)
    return {tuple(int(value) for value in pixel) for pixel in after[(before != after).any(1)]}


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return {
        key: np.asarray(value).tolist() if key.startswith("PIL") else value for key, value in item.items()
    }


def test_an_item_says_what_was_published_and_where_it_comes_from(folder: Path):
    item = dataset(folder)[2]
    assert set(item) == PUBLISHED_KEYS | OUR_KEYS
    assert item["image_stems"] == "val_2"
    assert sorted(item["entity_names"]) == ["mask_0", "mask_1", "mask_2"]
    assert shown(item) == {COLORS[color] for color in item["entity_colors"]}
    pairs = zip(item["entity_colors"], item["entity_captions"], strict=True)
    assert item["targets"] == "".join(f"<{color}>{caption}</{color}>" for color, caption in pairs)
    for name, caption, path in zip(
        item["entity_names"], item["entity_captions"], item["entity_paths"], strict=True
    ):
        known = json.loads((folder / "entities" / "val_2" / "annotations.json").read_text())[name]
        assert known["caption"] == caption
        assert Image.open(path).mode == "RGB"


def test_items_do_not_depend_on_workers_or_batches(folder: Path):
    data = dataset(folder, split="train")
    alone = [plain(data[k]) for k in range(len(data))]
    for workers, batch in ((2, 2), (0, 4)):
        loader = DataLoader(data, batch_size=batch, num_workers=workers, collate_fn=list)
        assert [plain(item) for items in loader for item in items] == alone
    data.set_epoch(1)
    assert [plain(data[k]) for k in range(len(data))] != alone
    held_out = dataset(folder)
    before = plain(held_out[5])
    held_out.set_epoch(1)
    assert plain(held_out[5]) == before
    assert plain(dataset(folder, seed=1)[5]) != before


def reds(folder: Path, bookkeeping: str) -> Counter[int]:
    """How many regions are red, over many held-out items."""
    found: Counter[int] = Counter()
    for seed in range(30):
        data = dataset(folder, bookkeeping=bookkeeping, masked_area_threshold=TIGHT, seed=seed)
        for index in (1, 2, 4, 5):
            found[data[index]["entity_colors"].count("red")] += 1
    return found


def test_exactly_one_region_is_red_unless_published(folder: Path):
    assert set(reds(folder, "fixed")) == {1}
    assert set(reds(folder, "published")) > {1}
    for index in range(9):
        assert dataset(folder, masked_area_threshold=TIGHT)[index]["entity_colors"][-1] == "red"


def test_one_region_alone(folder: Path):
    for single, name, paint in (("gray", "gray", GRAY), ("red", "red", COLORS["red"])):
        data = dataset(folder, only_gray_concept=True, single_color=single)
        for index in range(9):
            item = data[index]
            assert item["entity_colors"] == [name]
            assert shown(item) == {paint}
            assert item["targets"] == f"<{name}>{item['entity_captions'][0]}</{name}>"
    item = dataset(folder, only_gray_concept=True, single_color="published")[4]
    assert (item["entity_colors"], shown(item)) == (["gray"], {COLORS["red"]})


def areas_alone(folder: Path, **more: Any) -> Counter[str]:
    """Which region of an image whose regions differ in size is the one, over seeds."""
    found: Counter[str] = Counter()
    for seed in range(40):
        data = dataset(folder, only_gray_concept=True, seed=seed, **more)
        found.update(data[2]["entity_names"])
    return found


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose mask_0 is large, mask_1 smaller and inside it, mask_2 small, inside mask_1."""
    folder = write_paintings(tmp_path_factory.mktemp("sizes"), {"train": 3, "val": 3})
    for split in ("train", "val"):
        for j, side in enumerate((30, 20, 10)):
            mask = np.zeros((40, 52), np.uint8)
            mask[2 : 2 + side, 2 : 2 + side] = 255
            save(folder / "masks" / f"{split}_2" / f"mask_{j}.png", mask)
    return folder


def test_the_region_alone_is_any_of_them(sizes: Path):
    for split in ("train", "val"):
        found = areas_alone(sizes, split=split)
        assert set(found) == {"mask_0", "mask_1", "mask_2"}
        assert min(found.values()) >= 5
    assert set(areas_alone(sizes, split="train", bookkeeping="published")) == {"mask_0"}


def test_large_masks_are_painted_first_and_lose_what_others_cover(sizes: Path):
    item = dataset(sizes)[2]
    colors = dict(zip(item["entity_names"], item["entity_colors"], strict=True))
    painted = np.asarray(item["PIL_masked_images"])
    for j, corner in enumerate((31, 21, 3)):
        assert tuple(painted[corner, corner]) == COLORS[colors[f"mask_{j}"]]
    half = dataset(sizes).with_alphas(2, [0.5] * 5)
    under, over = np.asarray(half["PIL_images"]), np.asarray(half["PIL_masked_images"])
    colour = np.array(COLORS[colors["mask_0"]], np.float32)
    assert np.array_equal(
        over[31, 31], (under[31, 31] * np.float32(0.5) + colour * np.float32(0.5)).astype(np.uint8)
    )
    alone = np.asarray(
        dataset(sizes, remove_intersections=True).with_alphas(2, [0.5] * 5)["PIL_masked_images"]
    )
    assert np.array_equal(alone[31, 31], over[31, 31])
    assert not np.array_equal(alone[3, 3], over[3, 3])


def test_the_largest_prefix_within_the_threshold_is_kept(sizes: Path):
    names = {
        len(dataset(sizes, masked_area_threshold=0.3, seed=seed)[2]["entity_names"]) for seed in range(20)
    }
    assert names == {1, 2}  # 900 of 2080 pixels are too many, unless they are the first
    whole = dataset(sizes, masked_area_threshold=None, shuffle_concepts=False)[2]
    assert len(whole["entity_names"]) == 3
    two = dataset(sizes, max_concepts=2)[2]
    assert sorted(two["entity_names"]) == ["mask_0", "mask_1"]
    assert set(two["entity_colors"]) <= {"red", "green"}


def test_a_region_of_which_nothing_is_seen_is_no_question(sizes: Path, tmp_path: Path):
    folder = write_paintings(tmp_path, {"val": 3})
    for j in (0, 1):
        save(folder / "masks" / "val_2" / f"mask_{j}.png", np.full((40, 52), 255, np.uint8))
    assert sorted(dataset(folder, masked_area_threshold=1)[2]["entity_names"]) == ["mask_1", "mask_2"]
    published = dataset(folder, masked_area_threshold=1, bookkeeping="published")[2]
    assert sorted(published["entity_names"]) == ["mask_0", "mask_1", "mask_2"]


def test_damaged_images(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_paintings(tmp_path, {"train": 3, "val": 2})
    (folder / "masks" / "train_1" / "mask_0.png").write_bytes(b"no image")
    data = dataset(folder, split="train")
    assert data[1]["image_stems"] == "train_2"
    assert "left out" in caplog.text
    path = folder / "entities" / "val_0" / "annotations.json"
    entries = json.loads(path.read_text())
    del entries["mask_0"]["noun_chunk_root"]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="extract-noun-chunk-roots"):
        dataset(folder)[0]
    with pytest.raises(IndexError):
        data[3]


def test_options_are_checked(folder: Path):
    with pytest.raises(ValueError, match="single_color"):
        LlavaOptions(folder, single_color="mauve")
    with pytest.raises(ValueError, match="max_concepts must be in"):
        dataset(folder, max_concepts=11)
    with pytest.raises(ValueError, match="bookkeeping"):
        dataset(folder, bookkeeping="ours")
    assert len(dataset(folder, max_concepts=None)[2]["entity_names"]) == 3


def test_real_paintings(test_data: Path):
    folder = test_data / "data" / "paintings" / "processed"
    for split in ("train", "val", "test"):
        data = dataset(folder, split=split)
        for index in range(len(data)):
            item = data[index]
            colors = item["entity_colors"]
            assert len(set(colors)) == len(colors)
            assert split == "train" or colors[-1] == "red"
            assert {COLORS[color] for color in colors} <= shown(item)
            assert [read_prompt(item["targets"], color) for color in colors] == item["entity_captions"]
