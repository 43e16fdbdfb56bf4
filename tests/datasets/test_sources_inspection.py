"""The look at a source: contact sheet, table of rejections, check of all files, index of sound items."""

from __future__ import annotations

import json

import numpy as np
import pytest

import run_dataset_debug
from datasets.inputs import PairOptions
from datasets.sources import inspection
from datasets.sources.inspection import RejectionStats, accepted_samples
from datasets.sources.registry import DatasetsConfig, open_source
from datasets.uvo_process import build_app as uvo_app
from ldm.images import read_depth, read_image, resize, write_depth, write_mask
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.datasets import trees

CONFIG = str(ROOT / "configs/datasets.yaml")
SMALL = PairOptions(size=(64, 64), reference_size=56)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with the trees of `saliency`, `mose` and `folder`."""
    monkeypatch.chdir(tmp_path)
    for name in ("saliency", "mose", "folder"):
        trees.TREES[name](tmp_path / "data")
    return tmp_path


def run(*arguments: str) -> int:
    return run_app(run_dataset_debug.build_app, ["--config", CONFIG, *arguments])


def test_sheet_shows_a_row_per_example(home, caplog):
    with caplog.at_level("INFO"):
        assert run("--source", "mose", "--n", "3", "--size", "64", "--out", "out/a.png") == 0
    assert "accepted                           3   100.0%" in caplog.text
    h, w = read_image(home / "out/a.png").size
    assert w > 6 * 160
    assert h > 3 * 160


def test_scenes_need_no_data(home):
    assert run("--source", "scenes", "--n", "2", "--size", "32", "--out", "a.png") == 0
    assert read_image(home / "a.png").size[0] > 2 * 160


def test_table_counts_every_refusal_by_reason(home, caplog):
    """Of four images one object is too small, one file is damaged, one depth map is missing."""
    saliency = home / "data/Saliency"
    write_mask(saliency / "MSRA10K_Imgs_GT/f0.png", np.pad([[True]], ((0, 119), (0, 159))))
    (saliency / "DUTS-TR/DUTS-TR-Image/f1.jpg").write_bytes(b"no image")
    (saliency / "DUTS-TE/DUTS-TE-Depth/f2.png").unlink()
    source = open_source(load_config(DatasetsConfig, ROOT / "configs/datasets.yaml"), "saliency")
    stats = RejectionStats("saliency")
    found = list(accepted_samples(source, stats, SMALL, 12, seed=0))
    assert {name for name, _ in found} == {"masks/f3_1.png"}
    assert stats.accepted == len(found) > 0
    assert set(stats.rejected) == {"reference too small", "file"}
    assert caplog.text.count("f1.jpg is not an image") == 1, "named once, however often it is drawn"
    assert caplog.text.count("DUTS-TE-Depth/f2.png does not exist") == 1
    total = stats.accepted + sum(stats.rejected.values())
    assert f"saliency: {total} drawn" in stats.table()


def test_a_source_that_yields_nothing_stops_with_the_table(home, capsys):
    area = "saliency.rules.area=0.9,1.0"
    assert run("--source", "saliency", "--out", "a.png", area) == 2
    shown = capsys.readouterr().err
    assert "nothing was accepted in 100 draws in a row; saliency: 100 drawn" in shown
    assert "reference too small 100 100.0%" in " ".join(shown.split())
    assert not (home / "a.png").exists()


def test_validation_names_every_defect_and_lists_the_sound_items(home):
    mose = home / "data/MOSE/train"
    (mose / "JPEGImages/v0/00001.jpg").write_bytes(b"")
    write_depth(mose / "depth/v1/00002.png", np.eye(9, dtype=np.float32))
    trees.save_ids(mose / "Annotations/v1/00000.png", np.ones((10, 10), np.uint8))
    assert run("--source", "mose", "--validate", "--out", "report.json") == 0
    report = json.loads((home / "report.json").read_text())
    assert (report["items"], report["sound"]) == (3, 1)
    assert "00001.jpg is empty" in report["problems"]["v0"][0]
    assert {text.split()[0].split("/")[-1] for text in report["problems"]["v1"]} == {"depth", "00000.jpg"}
    assert json.loads((home / "report_index.json").read_text())["items"] == ["v2"]
    assert run("--source", "mose", "--n", "2", "--out", "a.png", "indexes.mose=report_index.json") == 0
    settings = load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", ["indexes.mose=report_index.json"])
    source = open_source(settings, "mose")
    assert [source.name(k) for k in range(len(source))] == ["v2"]
    assert source.example(0, np.random.default_rng(0)).mode == "inpaint"


def test_validation_counts_what_the_rules_refuse(home):
    assert run("--source", "folder", "--validate", "--out", "r.json", "folder.rules.max_side=0.2") == 0
    report = json.loads((home / "r.json").read_text())
    assert report["objects"] == {"accepted": 0, "target too large": trees.ITEMS}
    assert report["sound"] == trees.ITEMS


def test_an_interrupted_validation_goes_on(home, capsys, monkeypatch):
    assert run("--source", "mose", "--validate", "--out", "whole.json") == 0
    checked = []
    real = inspection.item_problems

    def two_items(source, index, objects):
        if len(checked) == 2:
            raise KeyboardInterrupt
        checked.append(index)
        return real(source, index, objects)

    monkeypatch.setattr(inspection, "item_problems", two_items)
    assert run("--source", "mose", "--validate", "--out", "report.json") != 0
    assert not (home / "report.json").exists()
    journal = home / "report_unfinished.jsonl"
    journal.write_text(journal.read_text()[:-5])  # as a kill in the middle of a line leaves it
    assert run("--source", "mose", "--validate", "--out", "report.json", "mose.interval=3") == 2
    assert "was begun with interval 10, now 3" in capsys.readouterr().err
    monkeypatch.setattr(inspection, "item_problems", lambda *one: checked.append(one[1]) or real(*one))
    assert run("--source", "mose", "--validate", "--out", "report.json") == 0
    assert checked == [0, 1, 1, 2]
    assert (home / "report.json").read_bytes() == (home / "whole.json").read_bytes()
    assert not journal.exists()


def test_an_index_of_other_data_is_refused(home, capsys):
    (home / "i.json").write_text('{"items": ["v9"]}')
    assert run("--source", "mose", "--out", "a.png", "indexes.mose=i.json") == 2
    assert "lists 1 items that the source lacks, such as v9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "moze", "--out", "a.png"], "did you mean 'mose'"),
        (["--source", "mose", "--out", "a.json"], "--out must end in .png"),
        (["--source", "mose", "--validate", "--out", "a.png"], "--out must end in .json"),
        (["--source", "sam", "--out", "a.png"], "sam: images: there is no folder data/SAM"),
        (["--source", "scenes", "--validate", "--out", "a.json", "scenes.folder=b"], "scenes"),
        (["--source", "mose", "--out", "a.png", "mose.interwal=3"], "did you mean 'mose.interval'"),
    ],
)
def test_wrong_arguments_are_one_line(home, capsys, arguments, message):
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not list(home.glob("a.*"))


def test_uvo_frames_are_listed_by_video(home):
    trees.TREES["uvo"](home / "data")
    annotations = "data/UVO/UVO_sparse_train_video_with_interpolation.json"
    assert run_app(uvo_app, [annotations, "frames.json"]) == 0
    assert json.loads((home / "frames.json").read_text())["1"] == [f"v1/{k}.jpg" for k in range(4)]
    sources = [
        open_source(load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", more), "uvo")
        for more in ([], ["uvo.image_json=frames.json"])
    ]
    first, second = (source.example(2, np.random.default_rng(4)) for source in sources)
    assert np.array_equal(first.background_u8, second.background_u8)


def test_depth_command_makes_what_the_sources_need(home, small_depth_network):
    """The command that the error names, with the network as an option."""
    from ldm import precompute_depth

    (home / "data/mine/depth").rename(home / "old")
    command = ["data/mine/images", "data/mine/depth", "--model", str(small_depth_network), "--device", "cpu"]
    assert run_app(precompute_depth.build_app, command) == 0
    source = open_source(load_config(DatasetsConfig, ROOT / "configs/datasets.yaml"), "folder")
    inputs = source.example(0, np.random.default_rng(0))
    stored = read_depth(home / "data/mine/depth/cup0.png")
    stored = resize(stored, inputs.background_depth_01.shape, how="linear")
    assert np.array_equal(inputs.background_depth_01, stored)
