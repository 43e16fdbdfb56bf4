"""A compositor folder: save and load give the same model, and every defect of a folder is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cldm.config import CONFIG_FILE, CompositorConfig, missing_parts
from cldm.create import create_compositor
from cldm.model import load_compositor, save_compositor
from datasets.inputs import PairOptions
from tests.cldm.small import SMALL, SMALL_CONFIG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small"
    save_compositor(create_compositor(SMALL, seed=1), SMALL_CONFIG, path, torch.float32)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "small"))


@torch.no_grad()
def test_round_trip(folder: Path) -> None:
    before, (after, config) = create_compositor(SMALL, seed=1).eval(), load_compositor(folder)
    assert config == SMALL_CONFIG
    assert after.scheduler_config["prediction_type"] == "v_prediction"
    assert before.state_dict().keys() == after.state_dict().keys()
    for key, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key
    x, r = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16)
    hint, depth = torch.rand(1, 4, 32, 32), torch.rand(1, 3, 32, 32)
    t = torch.tensor(7)
    torch.testing.assert_close(
        before(x, t, before.conditions(r, hint, depth)), after(x, t, after.conditions(r, hint, depth))
    )


def test_half_precision_folder_loads_in_single(tmp_path: Path) -> None:
    save_compositor(create_compositor(SMALL, seed=1), SMALL_CONFIG, tmp_path / "half")
    assert (
        load_file(next((tmp_path / "half" / "unet").glob("*.safetensors")))["conv_in.weight"].dtype
        == torch.float16
    )
    model, _ = load_compositor(tmp_path / "half")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_saving_again_replaces_the_whole_folder(copied: Path) -> None:
    before = (copied / "unet/config.json").read_bytes()
    (copied / "unet/.sha256.json").write_text("{}")  # hashes of large weights, which no one misses
    save_compositor(create_compositor(SMALL, seed=2), SMALL_CONFIG, copied)
    assert sorted(path.name for path in copied.parent.iterdir()) == [copied.name]
    assert (copied / "unet/config.json").read_bytes() == before


@pytest.mark.parametrize("mine", ["notes.txt", "unet/notes.txt", ".git/HEAD"])
def test_a_folder_with_files_of_others_is_kept(copied: Path, mine: str) -> None:
    for text in ("first", "second"):
        (copied / mine).parent.mkdir(exist_ok=True)
        (copied / mine).write_text(text)
        (copied.with_name("small.old")).mkdir(exist_ok=True)  # a copy that somebody made
        save_compositor(create_compositor(SMALL, seed=2), SMALL_CONFIG, copied)
        assert not (copied / mine).exists()
    names = sorted(path.name for path in copied.parent.iterdir())
    assert names == ["small", "small.old", "small.old1", "small.old2"]
    assert [(copied.with_name(name) / mine).read_text() for name in names[2:]] == ["first", "second"]


def test_failed_saving_leaves_the_old_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in copied.iterdir())
    monkeypatch.setattr("cldm.model.write_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_compositor(create_compositor(SMALL), SMALL_CONFIG, copied)
    assert sorted(path.name for path in copied.iterdir()) == before
    assert load_compositor(copied)[1] == SMALL_CONFIG
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def change_weights(folder: Path, change) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def test_missing_weight_is_named(copied: Path) -> None:
    change_weights(copied / "control_depth", lambda weights: weights.pop("mid_block.resnets.0.conv1.weight"))
    with pytest.raises(
        ValueError, match=r"control_depth: 1 weights missing \['mid_block.resnets.0.conv1.weight'\]"
    ):
        load_compositor(copied)


def test_unexpected_weight_is_named(copied: Path) -> None:
    change_weights(copied / "unet", lambda weights: weights.update(extra=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"unet: 0 weights missing \[\], 1 unexpected \['extra'\]"):
        load_compositor(copied)


def test_misshapen_weight_is_named(copied: Path) -> None:
    change_weights(copied / "projector", lambda weights: weights.update(bias=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"projector: weight bias has shape \(3,\), the model needs \(24,\)"):
        load_compositor(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "projector"])
def test_truncated_weights_are_named(copied: Path, part: str) -> None:
    file = next((copied / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{part}.*not a readable safetensors file"):
        load_compositor(copied)


def test_missing_part_and_missing_folder(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "vae")
    assert missing_parts(copied) == ["vae"]
    with pytest.raises(ValueError, match="missing vae"):
        load_compositor(copied)
    with pytest.raises(ValueError, match="nowhere: no such model folder"):
        load_compositor(tmp_path / "nowhere")


def test_wrong_kind_of_network(copied: Path) -> None:
    config = json.loads((copied / "unet" / "config.json").read_text())
    (copied / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": "ControlNetModel"}))
    with pytest.raises(ValueError, match="describes a ControlNetModel, expected a UNet2DConditionModel"):
        load_compositor(copied)


def test_configuration_with_an_unknown_key(copied: Path) -> None:
    config = json.loads((copied / CONFIG_FILE).read_text())
    config["pair"]["hf_mod"] = "zero"
    (copied / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="hf_mode"):
        load_compositor(copied)


def test_default_configuration_is_the_published_pre_processing() -> None:
    assert CompositorConfig().pair == PairOptions()
