"""Foreign checkpoints: no code of theirs runs, defects are named; what is written is plain safetensors."""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.weight_files import Entry, entry_of, open_weights, write_safetensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Bomb:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def read_all(path: Path) -> dict[str, torch.Tensor]:
    file = open_weights(path)
    return {key: file.read(key) for key in file.shapes}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "x": Bomb(tmp_path / "hit")}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"w.ckpt: refused"):
        open_weights(tmp_path / "w.ckpt")
    assert not (tmp_path / "hit").exists()


def test_a_plain_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "hit"), protocol=2))
    with pytest.raises(ValueError, match="refused|not a readable checkpoint"):
        open_weights(tmp_path / "w.pt")
    assert not (tmp_path / "hit").exists()


def test_training_objects_are_ignored_without_their_library(tmp_path: Path, monkeypatch) -> None:
    """Lightning checkpoints hold classes of its callbacks and numpy scalars beside the weights."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind
    one = kind()
    one.best = 3
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        content = {"state_dict": WEIGHTS, "callbacks": {kind: {"best": np.float64(0.5)}, "object": one}}
        torch.save(content, tmp_path / "w.ckpt")
    file = open_weights(tmp_path / "w.ckpt")
    assert file.others == ("callbacks",)
    assert torch.equal(file.read("a.weight"), WEIGHTS["a.weight"])


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth", "w.pt", "w.bin", "legacy.pth", "w.safetensors"])
def test_every_kind_of_file_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not name.startswith("legacy"))
    found = read_all(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_a_folder_of_shards_is_one_file(tmp_path: Path) -> None:
    for index, (key, value) in enumerate(WEIGHTS.items()):
        save_file({key: value}, tmp_path / f"model-0000{index}.safetensors")
    assert read_all(tmp_path).keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"x" * 50, "not a readable safetensors file"),
        ("w.ckpt", b"", "not a readable checkpoint|refused"),
        ("w.ckpt", b"PK\x03\x04 cut", "not a readable checkpoint|refused"),
        ("w.zip", b"x", "unknown kind of weight file"),
        ("folder/readme", b"x", "no \\*.safetensors"),
    ],
)
def test_unreadable_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        open_weights(path.parent if "/" in name else path)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(10000)}}, tmp_path / "w.ckpt")
    whole = (tmp_path / "w.ckpt").read_bytes()
    (tmp_path / "w.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"w.ckpt: (not a readable checkpoint|refused)"):
        open_weights(tmp_path / "w.ckpt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors|holds no tensors"):
        open_weights(tmp_path / "w.ckpt")


def test_written_files_are_read_by_the_library(tmp_path: Path) -> None:
    """All types, odd sizes and a scalar; every tensor stays aligned."""
    weights = {
        "half": torch.arange(3).half(),
        "single": torch.randn(5, 7),
        "flags": torch.tensor([True, False, True]),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "turned": torch.randn(4, 6).T,
    }
    write_safetensors(tmp_path / "w.safetensors", {key: entry_of(value) for key, value in weights.items()})
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path)
    entries = {key: entry_of(value) for key, value in WEIGHTS.items()}
    with pytest.raises(ZeroDivisionError):
        write_safetensors(path, entries | {"z": Entry((1,), torch.float32, lambda: 1 / 0)})
    with pytest.raises(ValueError, match=r"z: has shape \(2,\), \(1,\) was announced"):
        write_safetensors(path, entries | {"z": Entry((1,), torch.float32, lambda: torch.ones(2))})
    assert [one.name for one in tmp_path.iterdir()] == ["w.safetensors"]
    assert load_file(path).keys() == WEIGHTS.keys()
