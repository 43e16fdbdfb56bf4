"""The held-out loss: what is measured, the best checkpoint, the sheet, and what trackers get."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cldm.create import create_compositor
from cldm.training import records
from cldm.training import run as training_run
from cldm.training.data import PairData
from cldm.training.module import CompositorModule
from cldm.training.records import Validation
from cldm.training.run import make_trainer, train
from cldm.training.settings import CompositorTrainConfig, RunConfig, ValidationConfig
from datasets.examples import PairDataset, collate_pairs
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from datasets.sources.rendered import RenderedScenes
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train import run_config, scenes, weights
from tests.cldm.test_train_run import with_trainer
from tests.cldm.test_train_sources import datasets_file, settings
from tests.datasets import trees

__all__ = ["datasets_file", "scenes"]  # fixtures


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("others")
    store = StoreSettings(
        out=out, count=4, first_seed=90, size=(48, 48), reference_size=(32, 32), window="object"
    )
    render_shards(store)
    return out


def validated(out: Path, scenes: Path, others: Path, steps: int, **validation: Any) -> RunConfig:
    config = with_trainer(run_config(out, scenes, steps), probe_every=0, sample_every=0, save_every=4)
    return replace(config, validation=ValidationConfig(scenes=others, examples=3, **validation))


def table(run: Path) -> list[dict[str, str]]:
    with (run / "validation.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_checkpoint_stays_and_its_model_is_written(
    scenes: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: Iterator[float] = iter([0.9, 0.4, 0.7, 0.6, 0.5])
    monkeypatch.setattr(Validation, "losses", lambda *given: {"loss": next(losses)})
    config = with_trainer(validated(tmp_path / "run", scenes, others, 5, every=1), keep=1)
    train(config)
    assert [(row["step"], row["loss"]) for row in table(config.out)] == [
        ("1", "0.9"), ("2", "0.4"), ("3", "0.7"), ("4", "0.6"), ("5", "0.5")]  # fmt: skip
    kept = sorted(path.name for path in (config.out / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000005"]
    average = load_file(config.out / "checkpoints/step-00000002/average.safetensors")
    best = load_file(config.out / "best_model/unet/diffusion_pytorch_model.safetensors")
    name = "conv_out.weight"
    assert torch.equal(best[name], average[f"model.unet.{name}"].half())
    assert '"steps": 2' in (config.out / "best_manifest.json").read_text()


def test_an_interruption_changes_neither_rows_nor_best(scenes: Path, others: Path, tmp_path: Path) -> None:
    whole = validated(tmp_path / "whole", scenes, others, 4, every=2)
    train(whole)
    parts = replace(whole, out=tmp_path / "parts")
    train(with_trainer(parts, max_steps=3))
    train(parts)
    assert table(whole.out) == table(parts.out)
    assert [row["step"] for row in table(whole.out)] == ["2", "4"]
    plain = run_config(tmp_path / "plain", scenes, 4)
    train(with_trainer(plain, probe_every=0, sample_every=0, save_every=4))
    expected = weights(whole.out)
    for run in (parts.out, plain.out):  # measuring changes no training
        found = weights(run)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=key)
    assert not (plain.out / "validation.csv").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_loss_is_that_of_the_weights_that_are_saved(
    scenes: Path, others: Path, ema: float, tmp_path
) -> None:
    config = validated(tmp_path / "run", scenes, others, 2, every=2)
    config = replace(config, train=replace(config.train, ema=ema, drop_identity=1.0))
    train(config)
    module = CompositorModule(create_compositor(SMALL, 0), replace(config.train, seed=0))
    folder = config.out / "checkpoints/step-00000002"
    stored = load_file(folder / ("average.safetensors" if ema else "weights.safetensors"))
    module.load_state_dict(stored, strict=False)
    data = PairDataset(RenderedScenes(others), SMALL_CONFIG.pair, config.seed)
    with torch.no_grad():
        losses = [float(module.held_out_loss(collate_pairs([data[k]]), k, 3)) for k in range(3)]
    assert float(table(config.out)[0]["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_timesteps_are_even_and_nothing_is_dropped(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = CompositorModule(create_compositor(SMALL, 0), CompositorTrainConfig())
    batch = collate_pairs([PairDataset(RenderedScenes(scenes), SMALL_CONFIG.pair, 0)[0]])
    seen: list[tuple[int, float, float]] = []

    def noted(batch, latents, noise, timesteps, drops):
        seen.append((int(timesteps[0]), float(drops.min()), float(noise.sum())))
        return noise.sum()

    monkeypatch.setattr(module, "loss", noted)
    for k in (0, 1, 2, 3, 1):
        module.held_out_loss(batch, k, 4)
    assert [step for step, *_ in seen] == [125, 375, 625, 875, 375]
    assert {drop for _, drop, _ in seen} == {1.0}
    assert seen[1] == seen[4]
    assert len({noise for *_, noise in seen}) == 4


def test_real_sources_have_a_loss_each_and_the_sheet_shows_them(
    datasets_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "held"
    for name in ("folder", "mose"):
        trees.TREES[name](home / "data")
    file = tmp_path / "held.yaml"
    file.write_text(
        f"base: {datasets_file}\nweights: {{folder: 1, mose: 1}}\nfolder: {{root: {home}/data/mine}}\n"
        f"mose: {{images: {home}/data/MOSE/train/JPEGImages, masks: {home}/data/MOSE/train/Annotations,"
        f" depth: {home}/data/MOSE/train/depth}}\n"
    )
    shown: list[Any] = []
    monkeypatch.setattr(
        records, "grid", lambda rows, *more, **options: shown.extend(rows) or np.zeros((4, 4, 3), np.uint8)
    )
    config = settings(tmp_path / "run", datasets_file)
    config = replace(config, validation=ValidationConfig(datasets=file, examples=8, every=2))
    train(with_trainer(config, max_steps=2, sample_every=2))
    row = table(config.out)[0]
    assert list(row) == ["step", "loss", "folder", "mose"]
    assert min(map(float, row.values())) > 0
    data = PairData(config, 1)
    assert data.held_out is not None
    assert len(shown) == records.COUNT
    reference = data.held_out[0].reference_01
    assert np.abs(shown[0][0] / 255 - reference.permute(1, 2, 0).numpy()).max() < 0.01


@pytest.mark.parametrize("kind", ["scenes", "datasets", "indexes"])
def test_items_that_are_trained_on_are_refused(
    kind: str, scenes: Path, datasets_file: Path, tmp_path: Path
) -> None:
    if kind == "scenes":
        config = validated(tmp_path / "run", scenes, scenes, 1)
        told = "validation.scenes shares 12 items with the training data, such as 0 of"
    else:
        file = tmp_path / "held.yaml"
        file.write_text(f"base: {datasets_file}\nweights: {{folder: 0}}\n")
        config = replace(
            settings(tmp_path / "run", datasets_file), validation=ValidationConfig(datasets=file)
        )
        told = "validation.datasets shares 3 items with the training data, such as v0 of .*JPEGImages"
    if kind == "indexes":  # of one folder of videos, one is trained on and the others are held out
        (tmp_path / "a.json").write_text('{"items": ["v0", "v2"]}')
        (tmp_path / "b.json").write_text('{"items": ["v1"]}')
        file.write_text(f"{file.read_text()}indexes: {{mose: {tmp_path}/b.json}}\n")
        mine = tmp_path / "mine.yaml"
        mine.write_text(f"base: {datasets_file}\nindexes: {{mose: {tmp_path}/a.json}}\n")
        data = PairData(replace(config, data=replace(config.data, datasets=mine)), 1)
        assert data.held_out is not None
        assert len(data.held_out.sources[0]) == 1
        return
    with pytest.raises(ValueError, match=told):
        train(config)
    assert not config.out.exists()


def test_wrong_settings_are_named(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(ValueError, match=r"validation.datasets=a and validation.scenes=b: only one of them"):
        ValidationConfig(Path("a"), Path("b"))
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        ValidationConfig(examples=0)
    absent = replace(
        run_config(tmp_path, scenes, 1), validation=ValidationConfig(datasets=tmp_path / "no.yaml")
    )
    with pytest.raises(ValueError, match=r"no.yaml"):
        _ = PairData(absent, 1).held_out


def test_another_validation_set_begins_its_best_anew(scenes: Path, others: Path, tmp_path: Path) -> None:
    callback = Validation(validated(tmp_path, scenes, others, 1))
    callback.best, callback.best_step = 0.3, 7
    for examples, best in ((3, (0.3, 7)), (4, (float("inf"), 0))):
        other = validated(tmp_path, scenes, others, 1)
        again = Validation(replace(other, validation=replace(other.validation, examples=examples)))
        again.load_state_dict(callback.state_dict())
        assert (again.best, again.best_step) == best


class Tracker:
    """What Lightning's loggers are given."""

    made: list[dict[str, Any]] = []  # noqa: RUF012
    sent: list[Any] = []  # noqa: RUF012

    def __init__(self, *given: Any, **options: Any) -> None:
        self.made.append(options)

    experiment = SimpleNamespace(finish=lambda: None)

    def log_hyperparams(self, params: Any) -> None:
        self.sent.append(params)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.sent.append((step, metrics))

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **more: None


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_trackers_go_on_with_a_run_and_get_its_settings(
    scenes: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(Tracker, "made", made)
    monkeypatch.setattr(Tracker, "sent", sent := [])
    kind = type("Fake", (Tracker, training_run.Logger), {
        "name": "x", "version": "y",
        **{name: getattr(Tracker, name) for name in ("log_hyperparams", "log_metrics")},
    })  # fmt: skip
    monkeypatch.setattr(
        training_run, {"wandb": "WandbLogger", "tensorboard": "TensorBoardLogger"}[tracker], kind
    )
    config = with_trainer(validated(tmp_path / "run", scenes, others, 2, every=1), tracker=tracker)
    for steps in (1, 2):
        train(with_trainer(config, max_steps=steps))
    settings = [one for one in sent if isinstance(one, dict)]
    assert [one["trainer"]["max_steps"] for one in settings] == [1, 2]
    assert settings[0]["pair"]["hf_mode"] == "cutout"
    assert [
        step for step, row in (one for one in sent if isinstance(one, tuple)) if "validation/loss" in row
    ] == [1, 2]
    if tracker == "wandb":
        assert made[0]["id"] == made[1]["id"]
        assert {one["resume"] for one in made} == {"allow"}
        elsewhere = with_trainer(replace(config, out=tmp_path / "other"), tracker=tracker)
        make_trainer(elsewhere)
        assert made[2]["id"] != made[0]["id"]
    else:
        assert [one["purge_step"] for one in made] == [None, 2]
