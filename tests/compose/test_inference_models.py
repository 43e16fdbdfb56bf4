"""A model folder that is absent, incomplete or damaged is named in one line; nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cldm.config import CONFIG_FILE
from tests.images import Case, forbid_loading, refusal


@pytest.fixture
def copied(case: Case, tmp_path: Path) -> Path:
    return Path(shutil.copytree(case.model, tmp_path / "broken"))


def change(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (folder / CONFIG_FILE).write_text(json.dumps({**card, **changes}), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


CARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (shutil.rmtree, "broken: no such model folder"),
    "part": (lambda at: shutil.rmtree(at / "vae"), "not a complete compositor folder; missing vae"),
    "no config": (lambda at: (at / CONFIG_FILE).unlink(), f"missing {CONFIG_FILE}"),
    "cut": (
        lambda at: (at / CONFIG_FILE).write_text('{"name": '),
        f"{CONFIG_FILE} cannot be read as JSON",
    ),
    "list": (lambda at: (at / CONFIG_FILE).write_text("[]"), f"{CONFIG_FILE} must hold a JSON object"),
    "key": (
        lambda at: change(at, notise="x"),
        f"{CONFIG_FILE}: unknown key 'notise'; did you mean 'notice'?",
    ),
    "value": (
        lambda at: change(at, sampling={"steps": 0}),
        "sampling.steps must be in [1, 1000], got 0",
    ),
}


@pytest.mark.parametrize("damage", CARDS)
def test_an_incomplete_model_is_named_before_anything_is_read(
    case: Case, copied: Path, capsys, monkeypatch, damage: str
) -> None:
    forbid_loading(monkeypatch)
    break_it, reason = CARDS[damage]
    break_it(copied)
    message = refusal(case, lambda: case.run("--model", copied), capsys)
    assert str(copied) in message
    assert reason in message


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda at: change_weights(at / "unet", lambda weights: weights.pop("conv_in.bias")),
        "unet: 1 weights missing ['conv_in.bias']",
    ),
    "shape": (
        lambda at: change_weights(
            at / "unet", lambda weights: weights.update({"conv_in.bias": torch.zeros(3)})
        ),
        "weight conv_in.bias has shape",
    ),
    "cut": (
        lambda at: next((at / "vae").glob("*.safetensors")).write_bytes(b"123"),
        "not a readable safetensors file",
    ),
    "none": (lambda at: next((at / "projector").glob("*.safetensors")).unlink(), "projector"),
    "config": (lambda at: (at / "vae" / "config.json").write_text("{"), "cannot be read as JSON"),
    "schedule": (lambda at: (at / "scheduler" / "scheduler_config.json").unlink(), "does not exist"),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_named(case: Case, copied: Path, capsys, damage: str) -> None:
    break_it, reason = WEIGHTS[damage]
    break_it(copied)
    message = refusal(case, lambda: case.run("--model", copied), capsys)
    assert str(copied) in message
    assert reason in message


def test_a_depth_network_that_is_absent_or_broken_is_named(case: Case, capsys, monkeypatch) -> None:
    too_early = "the compositor was read first"
    monkeypatch.setattr("compose.models.load_compositor", lambda *args: pytest.fail(too_early))
    broken = Path(shutil.copytree(case.depth_model, case.folder / "broken"))
    (broken / "model.safetensors").write_bytes(b"123")
    for folder in (case.folder / "gone", Path("no/such"), broken):
        run = lambda folder=folder: case.run("--depth-model", folder, without=["--background-depth"])  # noqa: E731
        message = refusal(case, run, capsys)
        assert str(folder) in message


def test_the_default_model_that_is_absent_is_named(case: Case, capsys, monkeypatch) -> None:
    monkeypatch.setattr("compose.models.TINY_MODEL", Path("assets/tiny/gone"))
    message = refusal(case, lambda: case.run(without=["--model"]), capsys)
    assert "assets/tiny/gone: no such model folder" in message
