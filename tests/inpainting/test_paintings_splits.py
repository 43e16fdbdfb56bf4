"""Tables of splits name an image once."""

import unicodedata
from pathlib import Path

import pytest

from inpainting.data.dci_ops import DciSplitSettings
from inpainting.data.steps.split import SplitSettings
from ldm.files import write_json


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
