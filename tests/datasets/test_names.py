"""Names of files: blanks in lists, accents in both Unicode forms, hidden files and the copies of macOS."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from compose.batch import read_jobs
from datasets.sources.readers import images_in
from datasets.sources.still import FolderConfig, LvisConfig, MaskedFolder, SaliencyConfig, SamConfig
from datasets.sources.video import MvImgNetConfig, VipSegConfig
from inpainting.data.paintings import image_map, source_file
from inpainting.data.steps.split import SplitSettings, split_images
from ldm.checkpoints import read_weights
from ldm.files import (
    file_sha256,
    hash_folder,
    nfc,
    numbered_lines,
    read_json,
    read_table,
    same_file,
    visible_files,
)
from ldm.images import read_depth, read_image, read_mask, write_depth, write_mask, write_png
from ldm.precompute_depth import DepthSettings, estimate_tree
from ldm.registry.pull import hashes_of
from ldm.settings.config import load_config
from ldm.weight_files import open_weights
from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.predict.run import fingerprints
from llava_bifrost.settings import PredictJobs
from run_dataset_debug import DebugSettings
from tests.conftest import ROOT
from tests.datasets import trees

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xb0\xff"  # start of a `._` copy
CAFE = "caf\u00e9 cr\u00e8me"
FORMS = [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC"), ("NFD", "NFD")]


def form(name: str, text: str) -> str:
    return unicodedata.normalize(name, text)


def put(home: Path, name: str, of_mask: str = "") -> None:
    """An image with depth and mask."""
    rgb_u8, mask = trees.image(0)
    write_png(home / f"images/{name}.png", rgb_u8)
    write_depth(home / f"depth/{name}.png", np.eye(*mask.shape, dtype=np.float32))
    write_mask(home / f"masks/{of_mask or name}.png", mask)


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("cup hat", "cup in hat"),
        ("  cup   hat  ", "cup in hat"),
        ("cup\that", "cup in hat"),
        ('"cup left" hat', "cup left in hat"),
        ('hat   "cup left"', "hat in cup left"),
        ("cup left\that", "cup left in hat"),
        ('cup left\t"cup left"', "cup left"),
        ("mug's\that", "mug's in hat"),
        ("mug's hat", "mug's in hat"),
        (f'"{CAFE}" hat', f"{CAFE} in hat"),
        (form("NFD", CAFE) + "\t" + CAFE, CAFE),
    ],
)
def test_names_with_blanks_are_paired(tmp_path, line, item):
    for name in ("cup", "hat", "cup left", "mug's", form("NFD", CAFE)):
        put(tmp_path, name)
    (tmp_path / "pairs.txt").write_text(f"\n{line}\r\n\n", encoding="utf-8")
    source = FolderConfig(root=tmp_path).open()
    assert [source.name(k) for k in range(len(source))] == [item]
    assert source.example(0, np.random.default_rng(0)).target_mask.any()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "cup left hat",
            "line 2: there is no mask left; a line is REFERENCE TARGET, two masks, with q",
        ),
        ("cup cup cup", "line 2: 3 names; a line is REFERENCE TARGET"),
        ("cup", "line 2: 1 names"),
        ('"cup hat', "line 2: there is no mask cup hat"),
        ('""', "line 2: 0 names"),
    ],
)
def test_a_wrong_pair_is_named(tmp_path, line, message):
    for name in ("cup", "hat"):
        put(tmp_path, name)
    (tmp_path / "pairs.txt").write_text(f"cup hat\n{line}\n")
    with pytest.raises(ValueError, match=message):
        FolderConfig(root=tmp_path).open()


@pytest.mark.parametrize(
    "line",
    [
        '"MVDir/7/a b/images"',
        "MVDir/7/a b/images",
        "  7/a b/images\r",
        "MVDir\\7\\a b\\images",
        "./MVDir/7/a b/images/",
        "MVDir/7/a b/images\n7/a b/images",
    ],
)
def test_list_of_folders_holds_blanks(tmp_path, line):
    rgb_u8, mask = trees.image(0)
    write_png(tmp_path / "views/7/a b/images/001_cut.png", rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
    (tmp_path / "depth").mkdir()
    (tmp_path / "list.txt").write_text(f"{line}\n")
    config = MvImgNetConfig(
        images=tmp_path / "views", depth=tmp_path / "depth", listing=tmp_path / "list.txt"
    )
    source = config.open()
    assert source.name(0) == "7/a b/images"
    assert [view.image.name for view in source.views(0)] == ["001.jpg"]


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_images_masks_and_depth_are_found_in_either_form(tmp_path, on_disk, asked):
    folder, name = form(on_disk, "\u00fcber"), form(on_disk, CAFE)
    put(tmp_path / folder, name)
    wanted = tmp_path / form(asked, "\u00fcber")
    assert read_image(wanted / f"images/{form(asked, CAFE)}.png").size == trees.SIZE
    assert read_mask(wanted / f"masks/{form(asked, CAFE)}.png").any()
    assert read_depth(wanted / f"depth/{form(asked, CAFE)}.png").max() == 1
    assert same_file(wanted / "images/none.png") == wanted / "images/none.png"
    with pytest.raises(ValueError, match="none.png does not exist"):
        read_image(wanted / "images/none.png")


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_texts_and_hashes_are_read_in_either_form(tmp_path, on_disk, asked):
    disk, path = tmp_path / f"{form(on_disk, CAFE)}.csv", tmp_path / f"{form(asked, CAFE)}.csv"
    disk.write_text("a,b\n1,2\n")
    assert read_table(path, ("a",)) == [{"a": "1", "b": "2"}]
    assert numbered_lines(path) == [(1, "a,b"), (2, "1,2")]
    assert file_sha256(path) == file_sha256(disk)
    assert source_file(path) == path
    disk.write_text("{n: 3, source: lvis, out: a.png}")
    assert load_config(DebugSettings, path).n == 3
    disk.write_text('{"seed": 3}')
    assert read_json(path) == {"seed": 3}
    put(tmp_path, "cup")
    disk.write_text("cup\n" * 2)
    with pytest.raises(ValueError, match=r"line 1: 1 names"):
        FolderConfig(root=tmp_path, pairs=path).read()
    listing = MvImgNetConfig(images=tmp_path, depth=tmp_path / "depth", listing=path)
    assert listing.read() == [("cup",)]


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_an_answer_depends_on_an_image_in_either_form(tmp_path, on_disk, asked):
    disk, name = tmp_path / f"{form(on_disk, CAFE)}.png", f"{form(asked, CAFE)}.png"
    job, digests = {"id": "a", "folder": tmp_path, "image": name, "instruction": "x"}, []
    for content in (b"one", b"other"):
        disk.write_bytes(content)
        digests += fingerprints(PredictJobs(jobs=tmp_path / "jobs.jsonl"), [job]).values()
    assert digests[0] != digests[1]


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_sources_pair_names_of_either_form(tmp_path, on_disk, asked):
    stem = form(on_disk, CAFE)
    put(tmp_path, stem)
    (tmp_path / f"masks/{stem}.png").rename(tmp_path / f"masks/{form(asked, CAFE)}.png")
    (tmp_path / f"depth/{stem}.png").rename(tmp_path / f"depth/{form(asked, CAFE)}.png")
    (tmp_path / "i.json").write_text(json.dumps({"items": [form(asked, CAFE)]}))
    source = FolderConfig(root=tmp_path).open(tmp_path / "i.json")
    assert nfc(source.name(0)) == CAFE
    assert source.example(0, np.random.default_rng(0)).background_u8.shape[:2] == trees.SIZE
    h, w = trees.SIZE
    record = {"id": 1, "file_name": f"{form(asked, CAFE)}.png", "height": h, "width": w}
    outline = [40, 30, 90, 30, 90, 80, 40, 80]
    shape = {"id": 1, "image_id": 1, "area": 5000, "segmentation": [outline]}
    trees.save_json(tmp_path / "a.json", {"images": [record], "annotations": [shape]})
    lvis = LvisConfig(
        images=tmp_path / "images", depth=tmp_path / "depth", annotations=tmp_path / "a.json"
    ).open()
    assert lvis.example(0, np.random.default_rng(0)).background_depth_01.max() == 1
    assert image_map(tmp_path / "images")[CAFE + ".png"].is_file()


def hidden(folder: Path, name: str, data: bytes = APPLE) -> None:
    """What macOS and notebooks leave beside a file."""
    for path in (folder / f"._{name}", folder / ".ipynb_checkpoints" / name, folder / f".{name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_weights_are_read_beside_hidden_files(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    hidden(tmp_path, "model.safetensors")
    hidden(tmp_path / "part", "b.safetensors")
    assert list(read_weights(tmp_path)) == list(open_weights(tmp_path).shapes) == ["a"]
    assert list(hash_folder(tmp_path)) == list(hashes_of(tmp_path)) == ["model.safetensors"]
    assert visible_files(tmp_path, "**/*") == [tmp_path / "model.safetensors"]


def test_hidden_files_are_no_images_masks_or_annotations(tmp_path, caplog):
    put(tmp_path, "cup")
    for kind in ("images", "masks"):
        hidden(tmp_path / kind, "cup.png")
        hidden(tmp_path / kind, "hat.png")
    assert [path.name for path in images_in(tmp_path / "masks")] == ["cup.png"]
    assert list(image_map(tmp_path / "images")) == ["cup.png"]
    assert len(FolderConfig(root=tmp_path).open()) == 1
    part = MaskedFolder(images=tmp_path / "images", masks=tmp_path / "masks", depth=tmp_path / "depth")
    assert len(SaliencyConfig(msra=part).open()) == 1
    assert not caplog.records, "no mask without an image"
    trees.sam(tmp_path / "sam")
    hidden(tmp_path / "sam/SAM/0001", "sa_1.json")
    sam = SamConfig(images=tmp_path / "sam/SAM", depth=tmp_path / "sam/SAM_depth").open()
    assert [sam.name(k) for k in range(len(sam))] == [f"000{k}/sa_{k}.json" for k in range(3)]
    trees.vipseg(tmp_path / "vip")
    hidden(tmp_path / "vip/panomasksRGB/v0", "00009.png")
    (tmp_path / "vip/panomasksRGB/.cache").mkdir()
    hidden(tmp_path / "vip/panomasksRGB/__MACOSX/v0", "00000.png")
    names = {"images": "images", "depth": "depth", "masks": "panomasksRGB"}
    vip = VipSegConfig(**{key: tmp_path / "vip" / name for key, name in names.items()}).open()
    assert len(vip) == 3
    assert len(list(vip.views(0))) == 4


def test_depth_maps_are_made_of_visible_images_alone(tmp_path, small_depth_network):
    put(tmp_path, "cup")
    hidden(tmp_path / "images", "cup.png")
    hidden(tmp_path / "images/a/.ipynb_checkpoints/b", "cup.png", (tmp_path / "images/cup.png").read_bytes())
    settings = DepthSettings(tmp_path / "images", tmp_path / "made", str(small_depth_network), device="cpu")
    estimate_tree(settings)
    assert [path.name for path in sorted((tmp_path / "made").rglob("*.png"))] == ["cup.png"]


def test_bundled_weights_have_no_hidden_companions():
    assert all(not path.name.startswith(".") for path in visible_files(ROOT / "assets/tiny", "**/*"))


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_jobs_and_records_find_names_of_either_form(tmp_path, on_disk, asked):
    name, folder = f"{form(on_disk, CAFE)}.png", tmp_path / "images"
    put(tmp_path, form(on_disk, CAFE))
    job = {"name": "a", "background": f"images/{form(asked, CAFE)}.png", "object": f"images/{name}",
           "box": [0.1, 0.1, 0.5, 0.5], "depth": [0.5]}  # fmt: skip
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job) + "\n")
    (read,) = read_jobs(tmp_path / "jobs.jsonl", None, tmp_path)
    assert read.settings.background == folder / name
    said = {"human": "<image>\nPlace the cup", "gpt": "[0.1, 0.1, 0.5, 0.5], 0.5."}
    turns = [{"from": speaker, "value": text} for speaker, text in said.items()]
    record = {"id": "a", "image": f"{form(asked, CAFE)}.png", "conversations": turns}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    assert read_records(tmp_path / "data.json")[0].image == folder / name


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_splits_keep_the_names_of_images(tmp_path, on_disk, asked):
    name = f"{form(on_disk, CAFE)}.png"
    write_png(tmp_path / "images" / name, trees.image(0)[0])
    (tmp_path / "masks" / form(asked, CAFE)).mkdir(parents=True)
    table = tmp_path / "split.csv"
    table.write_text(f"file_name,split\n{form(asked, CAFE)}.png,val\n", encoding="utf-8")
    split_images(
        SplitSettings(image_dir=tmp_path / "images", masks_dir=tmp_path / "masks", split_df_path=table)
    )
    assert [path.name for path in (tmp_path / "images/val").iterdir()] == [name]
