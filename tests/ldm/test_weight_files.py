"""Foreign checkpoints: no code of theirs runs, defects are named; what is written is plain safetensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm import weight_files
from ldm.checkpoints import load_strict, read_weights
from ldm.files import hash_folder
from ldm.weight_files import Entry, entry_of, open_weights, write_safetensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    file = open_weights(path)
    return {key: file.read(key) for key in file.shapes}


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
    ("beside", "read"),
    [
        ({"optimizer.bin": 0, "scheduler.bin": 0, "random_states_0.bin": 0, "training_args.bin": 0}, "w.bin"),
        ({"optimizer_1.bin": 0, "sampler.bin": 0, "scaler.pt": 0, "rng_state_0.pth": 0}, "pytorch_model.bin"),
        ({"model.fp16.safetensors": 2, "optimizer.bin": 0, "._model.safetensors": 0}, "model.safetensors"),
        ({"model-00001-of-00001.safetensors": 2, "mm_projector.bin": 2}, "model.safetensors"),
        ({"diffusion_pytorch_model.bin": 2, ".hidden.safetensors": 0}, "diffusion_pytorch_model.safetensors"),
        ({"._model.fp16.safetensors": 0, "optimizer.bin": 0}, "model.fp16.safetensors"),
    ],
)
def test_a_folder_of_training_gives_its_weights(beside: dict[str, int], read: str, tmp_path: Path) -> None:
    """beside: name -> 0 for a file that no reader knows, else the factor of other weights."""
    for name, factor in {**beside, read: 1}.items():
        weights = {key: value * factor for key, value in WEIGHTS.items()}
        if not factor:
            (tmp_path / name).write_bytes(b"\0\5\x16\7Mac OS X")
        elif name.endswith(".safetensors"):
            save_file(weights, tmp_path / name)
        else:
            torch.save(weights, tmp_path / name)
    for found in (read_all(tmp_path), read_weights(tmp_path)):
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_two_files_with_one_weight_are_refused(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
    for read in (open_weights, read_weights):
        with pytest.raises(ValueError, match=r"00002.safetensors and .*00003.safetensors both hold a.bias"):
            read(tmp_path)


def test_hidden_files_are_not_hashed(tmp_path: Path) -> None:
    for name in ("a/w.safetensors", "a/._w.safetensors", ".w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(hash_folder(tmp_path)) == ["a/w.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
        "layers.0.self_attn.rotary_emb.inv_freq",
        "h.0.attn.masked_bias",
        "encoder.layers.0.blocks.0.attention.self.relative_position_index",
        "norm.num_batches_tracked",
    ],
)
def test_retired_buffers_may_be_there(name: str) -> None:
    layer = torch.nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    load_strict(layer, weights | {name: torch.ones(1)}, "file")
    assert torch.equal(layer.bias, weights["bias"])
    with pytest.raises(ValueError, match=r"file: 0 weights missing \[\], 1 unexpected"):
        load_strict(layer, weights | {name + ".weight": torch.ones(1)}, "file")


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


@pytest.mark.parametrize(("limit", "openings"), [(2**28, 1), (40, 25), (1, 50)])
def test_a_file_is_opened_once_for_many_keys_and_anew_where_much_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, openings: int
) -> None:
    """The header was read for every key: time grew with the square of the number of keys."""
    values = {f"{n}.weight": torch.full((5,), float(n)) for n in range(50)}
    save_file(values, tmp_path / "a.safetensors")
    opened, real = [], weight_files.safe_open
    weights = open_weights(tmp_path / "a.safetensors")
    monkeypatch.setattr(weight_files, "MAPPED", limit)
    monkeypatch.setattr(weight_files, "safe_open", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    for key, value in values.items():
        assert torch.equal(weights.read(key), value)
    assert len(opened) == openings
