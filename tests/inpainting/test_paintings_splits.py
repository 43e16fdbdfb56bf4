"""Names of images: one split each in a table, one folder each for masks and entities."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inpainting.data.dci_ops import DciSplitSettings
from inpainting.data.steps import split
from inpainting.data.steps.regions import RegionSettings, make_entities, make_masks
from inpainting.data.steps.split import SplitSettings
from ldm.files import write_json
from ldm.journal import run_step


@pytest.mark.parametrize("other", ["a.jpg", "a\u0301.jpg"])
def test_an_image_in_two_splits_is_refused(tmp_path: Path, other: str) -> None:
    name, table = unicodedata.normalize("NFC", other), tmp_path / "table.csv"
    (tmp_path / "masks" / Path(name).stem).mkdir(parents=True)
    settings = SplitSettings(tmp_path, tmp_path / "masks", table)
    table.write_text(f"file_name;split\n{name};train\n{other};train\n", encoding="utf-8-sig")
    assert settings.plan([name])[0] == {name: "train"}
    table.write_text(f"file_name;split\n{name};train\n{other};test\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"table.csv: {name} is in two splits, train and test"):
        settings.plan([name])
    for number in (1, 2):
        write_json(tmp_path / f"dci/{number}.json", {"image": name})
    lists = DciSplitSettings(tmp_path, annotations_dir=tmp_path / "dci", split_path=tmp_path / "s.json")
    write_json(tmp_path / "s.json", {"train": ["1.json", "2.json"], "valid": []})
    assert lists.plan([name])[0] == {name: "train"}
    write_json(tmp_path / "s.json", {"train": ["1.json"], "test": ["2.json"]})
    with pytest.raises(ValueError, match=rf"s.json: {name} is in two splits, train and test"):
        lists.plan([name])


@pytest.mark.parametrize("make", [make_masks, make_entities])
@pytest.mark.parametrize("pair", [("a.jpg", "a.png"), ("a.jpg", "a.JPG"), ("\xe9.jpg", "e\u0301.png")])
def test_images_that_would_share_a_folder_are_left_out(
    tmp_path: Path, make: Any, pair: tuple[str, str]
) -> None:
    images = tmp_path / "images"
    for name in (*pair, "b.jpg", "a.b.jpg"):
        (images / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / "train" / name)
    entry = {"entities": {"A dog": {"bboxes": [[0.1, 0.1, 0.6, 0.6]]}}}
    write_json(tmp_path / "annotations.json", {path.name: entry for path in (images / "train").iterdir()})
    settings = RegionSettings(tmp_path / "annotations.json", image_dir=images, out_dir=tmp_path / "out")
    journal = make(settings)
    assert set(journal.done) == {"b.jpg", "a.b.jpg"}
    assert set(journal.left_out) == set(pair)
    assert all(reason.startswith("2 images are called ") for reason in journal.left_out.values())
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"b", "a.b"}


def test_images_that_another_process_moved_meanwhile_are_found(tmp_path: Path, monkeypatch: Any) -> None:
    images, table = tmp_path / "images", tmp_path / "table.csv"
    for name in ("a.jpg", "b.jpg"):
        (images / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / Path(name).stem).mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / "train" / name)
    table.write_text("file_name;split\na.jpg;val\nb.jpg;train\n", encoding="utf-8")
    settings = SplitSettings(images, tmp_path / "masks", table)

    def begun_later(*given: Any, **how: Any) -> Any:
        """The other one, with the same settings, is done in between."""
        monkeypatch.setattr(split, "run_step", run_step)
        split.split_images(settings)
        return run_step(*given, **how)

    monkeypatch.setattr(split, "run_step", begun_later)
    split.split_images(settings)
    assert [path.name for path in (images / "val").iterdir()] == ["a.jpg"]
    assert [path.name for path in (images / "train").iterdir()] == ["b.jpg"]
