"""Sources of real images on fabricated trees: layouts, determinism, messages, the mixture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.examples import PairDataset, collate_pairs
from datasets.inputs import AugmentationParams, PairOptions
from datasets.pairs import build_pair, model_inputs
from datasets.sources import readers
from datasets.sources.registry import SOURCES, DatasetsConfig, open_source
from ldm.images import write_depth, write_mask
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.datasets import trees

SMALL = PairOptions(size=(64, 64), reference_size=56)
DYNAMICS = {"youtube_vos": 1, "youtube_vis": 1, "vipseg": 1, "uvo": 1, "uvo_val": 1, "dreambooth": 1}
DYNAMICS |= {"mose": 2, "mvimgnet": 2, "viton_hd": 2, "dress_code": 2, "fashion_tryon": 2}
OVERRIDES = ["sam.min_pixels=3000"]  # the fabricated images are small


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a fabricated tree of every source, at the paths of configs/datasets.yaml."""
    folder = tmp_path_factory.mktemp("home")
    for write in trees.TREES.values():
        write(folder / "data")
    return folder


@pytest.fixture(scope="module")
def published():
    return load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", OVERRIDES)


@pytest.fixture
def config(published, home, monkeypatch):
    """The settings, in a folder where everything they name is there."""
    monkeypatch.chdir(home)
    return published


@pytest.fixture
def own(published, tmp_path, monkeypatch):
    """A folder of its own, for tests that break things: writes the tree of one source and opens it."""
    monkeypatch.chdir(tmp_path)

    def write(name):
        trees.TREES[name](tmp_path / "data")
        return lambda: open_source(published, name)

    return write


def test_every_source_has_a_tree_and_a_section(published):
    assert set(trees.TREES) == set(SOURCES) - {"scenes"}
    assert all(getattr(published, name) is not None for name in SOURCES)


@pytest.mark.parametrize("name", trees.TREES)
def test_source_reads_its_layout(name, config):
    source = open_source(config, name)
    assert len(source) == trees.ITEMS + (name == "saliency")
    assert source.dynamics == DYNAMICS.get(name, 0)
    assert len({source.name(index) for index in range(len(source))}) == len(source)
    for index in range(len(source)):
        inputs = source.example(index, np.random.default_rng(index))
        assert inputs.background_depth_01.max() == 1
        assert inputs.target_u8 is None
        share = inputs.target_mask.mean()
        assert 0.15 < share < 0.35, "the object is an ellipse, a rectangle for lvis"
        pair = build_pair(inputs, SMALL, AugmentationParams.fixed(SMALL))
        assert pair.edit_mask.any()
        # The object of the reference is striped, everything round it white.
        assert pair.reference_01[:, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", trees.TREES)
def test_same_index_and_generator_give_the_same_example(name, config):
    one, other = (open_source(config, name).example(1, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.background_u8, other.background_u8)
    assert np.array_equal(one.reference_u8, other.reference_u8)
    assert np.array_equal(one.target_mask, other.target_mask)


@pytest.mark.parametrize("name", trees.TREES)
def test_missing_data_name_the_source_and_the_folder(name, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name}: .*data/"):
        open_source(published, name)


def test_missing_depth_folder_names_the_command(own, tmp_path):
    opened = own("mose")
    (tmp_path / "data/MOSE/train/depth").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"`python -m ldm.precompute_depth data/MOSE/train/JPEGImages "):
        opened()


def test_missing_depth_map_names_the_file_and_the_command(own, tmp_path):
    opened = own("saliency")
    (tmp_path / "data/Saliency/MSRA10K_Depth_GT/f0.png").unlink()
    with pytest.raises(ValueError, match=r"f0.png does not exist; `python -m ldm.precompute_depth data/"):
        opened().example(0, np.random.default_rng(0))


def test_a_depth_map_of_another_size_is_refused(own, tmp_path):
    opened = own("saliency")
    write_depth(tmp_path / "data/Saliency/MSRA10K_Depth_GT/f0.png", np.eye(9, dtype=np.float32))
    with pytest.raises(ValueError, match=r"f0.png is 9 x 9 pixels, its image is 160 x 120"):
        opened().example(0, np.random.default_rng(0))


def test_a_corrupt_image_is_skipped_in_training(own, tmp_path):
    opened = own("saliency")
    (tmp_path / "data/Saliency/MSRA10K_Imgs_GT/f0.jpg").write_bytes(b"\xff\xd8 nothing")
    dataset = PairDataset(opened(), SMALL, seed=0)
    assert all(dataset[k].edit_mask.any() for k in range(8))
    with pytest.raises(ValueError, match=r"f0.jpg"):
        opened().example(0, np.random.default_rng(0))


@pytest.mark.parametrize("name", trees.TREES)
def test_listings_do_not_depend_on_the_file_system(name, config, monkeypatch):
    """Folders may be listed in any order; items and draws stay the same."""
    before = open_source(config, name)
    drawn = before.example(2, np.random.default_rng(1))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    after = open_source(config, name)
    assert [after.name(k) for k in range(len(after))] == [before.name(k) for k in range(len(before))]
    again = after.example(2, np.random.default_rng(1))
    assert np.array_equal(again.background_u8, drawn.background_u8)
    assert np.array_equal(again.reference_u8, drawn.reference_u8)


def test_own_folder_without_depth_shows_a_constant_one(own, tmp_path, caplog):
    opened = own("folder")
    (tmp_path / "data/mine/depth").rename(tmp_path / "elsewhere")
    assert not opened().example(0, np.random.default_rng(0)).background_depth_01.any()
    assert "has no folder depth" in caplog.text


def test_own_folder_pairs_masks_by_list(own, tmp_path):
    opened, listing = own("folder"), tmp_path / "data/mine/pairs.txt"
    listing.write_text("cup0 cup2\n\ncup1 cup1\n")
    source = opened()
    assert [source.name(k) for k in range(len(source))] == ["cup0 in cup2", "cup1"]
    inputs = source.example(0, np.random.default_rng(0))
    assert not np.array_equal(inputs.reference_mask, inputs.target_mask)
    listing.write_text("cup0 cap\n")
    with pytest.raises(ValueError, match=r"pairs.txt, line 1: there is no mask cap"):
        opened()


def test_dreambooth_second_layout(tmp_path):
    """Black is the part to fill there."""
    for name, folder in (("a", "objects"), ("b", "objects")):
        rgb_u8, mask = trees.image(0)
        trees.save_jpeg(tmp_path / folder / f"{name}.jpg", rgb_u8)
        trees.save_jpeg(tmp_path / "masks" / f"{name}.jpg", mask.astype(np.uint8) * 255)
    hole = trees.frame(tmp_path / "bg", tmp_path / "depth", "room_1", 3)
    trees.save_jpeg(tmp_path / "bg/room_1_mask.jpg", np.where(hole, 0, 255).astype(np.uint8))
    paths = {"objects": "objects", "object_masks": "masks", "backgrounds": "bg", "depth": "depth"}
    overrides = [f"dreambooth.{key}={tmp_path / name}" for key, name in paths.items()]
    source = open_source(load_config(DatasetsConfig, None, overrides), "dreambooth")
    assert [source.name(k) for k in range(len(source))] == ["a", "b"]
    assert (list(source.views(0))[-1].mask() == hole).mean() > 0.99


def test_annotations_of_another_form_are_named(own, tmp_path):
    opened = own("lvis")
    trees.save_json(tmp_path / "data/LVIS/lvis_v1_train.json", {"images": [{"id": 1}], "annotations": [{}]})
    with pytest.raises(ValueError, match=r"^lvis: data/LVIS/.*1 of 1 images .*'height' is missing"):
        opened()
    (tmp_path / "data/LVIS/lvis_v1_train.json").write_text("{")
    with pytest.raises(ValueError, match=r"^lvis: .*lvis_v1_train.json cannot be read as JSON"):
        opened()


def test_a_damaged_annotation_costs_one_item_only(own, tmp_path):
    opened = own("sam")
    trees.save_json(tmp_path / "data/SAM/0001/sa_1.json", {"image": {}, "annotations": [{}]})
    source = opened()
    with pytest.raises(
        ValueError, match=r"sa_1.json is not an annotation file of SA-1B: 'height' is missing"
    ):
        source.example(1, np.random.default_rng(0))
    assert PairDataset(source, SMALL, seed=0)[1].edit_mask.any()


def test_mask_without_image_is_left_out(own, tmp_path, caplog):
    opened = own("folder")
    write_mask(tmp_path / "data/mine/masks/lonely.png", np.eye(50, dtype=bool))
    assert len(opened()) == trees.ITEMS
    assert "lonely.png" in caplog.text


def test_published_mixture_opens_with_its_shares(config):
    for name in config.weights:
        assert name in SOURCES
    sources, weights = config.open_mixture()
    share = {
        name: round(weight / sum(weights), 3) for name, weight in zip(config.weights, weights, strict=True)
    }
    assert share == {
        "sam": 0.286,
        "youtube_vos": 0.19,
        "mose": 0.19,
        "vipseg": 0.143,
        "viton_hd": 0.095,
        "saliency": 0.048,
        "lvis": 0.048,
    }
    dataset = PairDataset(sources, SMALL, 0, weights)
    assert dataset[3].edit_mask.any()


def test_loader_processes_do_not_change_the_examples(config):
    """Example k of a seed is the same in any process, also after other examples."""
    sources, weights = config.open_mixture()
    dataset = PairDataset(sources, SMALL, 1, weights)
    loader = DataLoader(dataset, 2, sampler=range(6), num_workers=2, collate_fn=collate_pairs)
    loaded = [model_inputs(batch) for batch in loader]
    alone = [PairDataset(sources, SMALL, 1, weights)[k] for k in (5, 0)]
    assert torch.equal(loaded[2]["detail_pm1"][1], alone[0].detail_pm1)
    assert torch.equal(loaded[0]["reference_01"][0], alone[1].reference_01)


def test_unknown_source_is_answered_with_the_nearest(config):
    with pytest.raises(ValueError, match="did you mean 'mose'"):
        open_source(config, "moze")
    with pytest.raises(ValueError, match="weights: unknown source 'moze'"):
        replace(config, weights={"moze": 1.0})
    with pytest.raises(ValueError, match="the settings file has no section mose; it has scenes"):
        open_source(load_config(DatasetsConfig, None, ["scenes.folder=a"]), "mose")


@pytest.mark.parametrize(
    ("model", "warned"), [("assets/tiny/depth", True), ("assets/depth", True), ("models/depth", False)]
)
def test_maps_of_a_stand_in_for_a_depth_network_are_named(tmp_path, caplog, model, warned):
    tree = readers.Tree(tmp_path, tmp_path)
    tree.check()
    assert not caplog.messages
    (tmp_path / "depth_model.json").write_text(json.dumps({"model": model, "weights": {}}))
    tree.check()
    assert [model in one and "ldm.registry pull" in one for one in caplog.messages] == [True] * warned
