"""Going on with a run: what may change is applied and logged, what may not is refused with both values."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cldm.create import create_compositor
from cldm.model import save_compositor
from cldm.training import data as training_data
from cldm.training.checkpoints import Change, check_resumed, run_record
from cldm.training.run import starting_model, train
from cldm.training.settings import CompositorTrainConfig, DataConfig, RunConfig
from ldm.files import write_json
from ldm.settings.config import dump_yaml, load_config
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_train import run_config, scenes
from tests.cldm.test_train_run import rows, with_trainer
from tests.cldm.test_train_sources import datasets_file, settings

__all__ = ["datasets_file", "scenes"]  # fixtures
ITEMS = {"a": 12}


def begun(config: RunConfig, items: dict[str, int] = ITEMS) -> Path:
    """A checkpoint folder that holds nothing but what the run was begun with."""
    folder = config.out / "checkpoints" / "step-00000003"
    write_json(folder / "run.json", run_record(config, items))
    return folder


def changed(config: RunConfig, *texts: str) -> RunConfig:
    """The configuration with `key=value` texts laid over it."""
    file = config.out / "as_it_was.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_yaml(config))
    return load_config(RunConfig, file, texts)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return run_config(tmp_path / "run", tmp_path / "scenes", 6)


@pytest.mark.parametrize(
    ("text", "was", "now"),
    [
        ("train.lr=1e-6", 1e-3, 1e-6),
        ("train.betas=0.8,0.9", [0.9, 0.999], [0.8, 0.9]),
        ("train.gradient_checkpointing=true", False, True),
        ("trainer.max_steps=9", 6, 9),
        ("trainer.log_every=7", 1, 7),
        ("trainer.precision=bf16-mixed", "32-true", "bf16-mixed"),
        ("trainer.tracker=wandb", "none", "wandb"),
        ("data.workers=3", 0, 3),
        ("sampling.steps=9", 2, 9),
        ("notice=x", "", "x"),
    ],
)
def test_what_may_change_is_allowed(config: RunConfig, text: str, was: Any, now: Any) -> None:
    checkpoint = begun(config)
    other = changed(config, text)
    key = text.partition("=")[0]
    assert check_resumed(other, run_record(other, ITEMS), checkpoint) == [Change(key, was, now)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed=1", "seed 0, now 1;"),
        ("train.seed=2", "train.seed 0, now 2;"),
        ("train.ema=0.5", "train.ema 0.9, now 0.5;"),
        ("train.drop_depth=0", "train.drop_depth 0.3, now 0.0;"),
        ("pair.hf_mode=zero", "pair.hf_mode 'cutout', now 'zero';"),
        ("pair.augment.flip=0.5", "pair.augment.flip 0.0, now 0.5;"),
        ("network.heads=4,4", r"network.heads \[2, 4\], now \[4, 4\];"),
        ("data.true_depth=true", "data.true_depth False, now True;"),
        ("data.scenes=other", "data.scenes '.*/scenes', now '.*other';"),
        ("data.batch=3", "data.batch x trainer.accumulate x trainer.devices x trainer.nodes 2, now 3;"),
        ("trainer.devices=2", "data.batch x .* x trainer.nodes 2, now 4;"),
    ],
)
def test_what_may_not_change_is_refused_with_both_values(config: RunConfig, text: str, told: str) -> None:
    checkpoint = begun(config)
    other = changed(config, text)
    with pytest.raises(ValueError, match=rf"step-00000003 was begun with {told} use the same settings, or"):
        check_resumed(other, run_record(other, ITEMS), checkpoint)


def test_devices_may_change_where_the_step_stays(config: RunConfig) -> None:
    checkpoint = begun(config)
    other = changed(config, "trainer.devices=2", "data.batch=1")
    found = check_resumed(other, run_record(other, ITEMS), checkpoint)
    assert found == [Change("data.batch", 2, 1), Change("trainer.devices", 1, 2)]


def test_all_that_may_not_change_is_named_at_once(config: RunConfig) -> None:
    checkpoint = begun(config)
    other = changed(config, "seed=1", "train.lr=1", "pair.dilation=0.1")
    with pytest.raises(ValueError, match=r"begun with seed 0, now 1; pair.dilation 0.02, now 0.1; use"):
        check_resumed(other, run_record(other, ITEMS), checkpoint)


def test_another_number_of_items_is_another_mixture(config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"mixture.items.a 12, now 11;"):
        check_resumed(config, run_record(config, {"a": 11}), begun(config))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("weights: {folder: 3, mose: 2}", r"mixture.mose.weight 1.0, now 2.0;"),
        ("mose: {interval: 4}", r"mixture.mose.interval 10, now 4;"),
        ("folder: {rules: {whole: 0.5}}", r"mixture.folder.rules.whole 0.9, now 0.5;"),
        ("mose: {depth: elsewhere}", ""),
    ],
)
def test_the_mixture_of_a_datasets_file_stays_but_its_files_may_move(
    datasets_file: Path, tmp_path: Path, line: str, told: str
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"base: {datasets_file}\n")
    config = settings(tmp_path / "run", mixture)
    items = {"folder": 3, "mose": 3}
    checkpoint = begun(config, items)
    mixture.write_text(f"base: {datasets_file}\n{line}\n")
    if not told:
        assert check_resumed(config, run_record(config, items), checkpoint) == []
        return
    with pytest.raises(ValueError, match=told):
        check_resumed(config, run_record(config, items), checkpoint)


def test_a_model_folder_may_move_but_not_change(config: RunConfig, tmp_path: Path) -> None:
    first = tmp_path / "first"
    save_compositor(create_compositor(SMALL, 1), SMALL_CONFIG, first)
    config = replace(config, pretrained=first)
    checkpoint = begun(config)
    moved = replace(config, pretrained=first.rename(tmp_path / "moved"))
    found = check_resumed(moved, run_record(moved, ITEMS), checkpoint)
    assert found == [Change("pretrained", first.as_posix(), (tmp_path / "moved").as_posix())]
    save_compositor(create_compositor(SMALL, 2), SMALL_CONFIG, tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"pretrained '.*first', now '.*'; hashes.pretrained '\w{64}', now '"
    ):
        check_resumed(moved, run_record(moved, ITEMS), checkpoint)
    fresh = replace(config, pretrained=None)
    told = r"pretrained '.*first', now None; hashes.pretrained '\w{64}', now None"
    with pytest.raises(ValueError, match=told):
        check_resumed(fresh, run_record(fresh, ITEMS), checkpoint)


def test_a_checkpoint_of_an_earlier_version_is_compared_with_config_yaml(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = begun(config)
    (checkpoint / "run.json").unlink()
    old = dump_yaml(config).replace("  stop_after: 2000\n", "")  # a key that was not there
    (config.out / "config.yaml").write_text(old)
    assert check_resumed(config, run_record(config, ITEMS), checkpoint) == []
    assert "is of an earlier version: data and model folders are not compared" in caplog.text
    other = replace(config, seed=4)
    with pytest.raises(ValueError, match="seed 0, now 4"):
        check_resumed(other, run_record(other, ITEMS), checkpoint)


def test_a_new_rate_is_applied_and_logged_and_a_refused_run_changes_nothing(
    scenes: Path, tmp_path: Path
) -> None:
    config = run_config(tmp_path / "run", scenes, 3)
    train(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="train.seed 0, now 77"):
        train(replace(config, train=replace(config.train, lr=1e-6, seed=77)))
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before
    stored = json.loads((config.out / "checkpoints/step-00000003/run.json").read_text())
    assert stored["config"]["train"]["lr"] == 1e-3
    assert stored["mixture"]["items"] == {str(scenes): 12}
    slower = replace(
        config, train=replace(config.train, lr=1e-6, warmup=0, weight_decay=0.5, betas=(0.5, 0.6))
    )
    for steps in (4, 6):
        train(with_trainer(slower, max_steps=steps))
    assert [float(row["lr"]) for row in rows(config.out)] == pytest.approx([5e-4, 1e-3, 1e-3] + [1e-6] * 3)
    with (config.out / "changes.csv").open() as file:
        logged = [tuple(row.values()) for row in csv.DictReader(file)]
    assert logged == [
        ("3", "train.lr", "0.001", "1e-06"),
        ("3", "train.warmup", "2", "0"),
        ("3", "train.betas", "[0.9, 0.999]", "[0.5, 0.6]"),
        ("3", "train.weight_decay", "0.01", "0.5"),
        ("3", "trainer.max_steps", "3", "4"),
        ("4", "trainer.max_steps", "4", "6"),
    ]
    state = torch.load(config.out / "checkpoints/step-00000006/state.pt", weights_only=True)
    group = state["optimizer_states"][0]["param_groups"][0]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.5, 0.6), 0.5, 1e-6)
    assert "lr: 1.0e-06" in (config.out / "config.yaml").read_text()


@pytest.mark.parametrize(("first", "then"), [((4, 1), (1, 4)), ((2, 2), (4, 1)), ((1, 4), (2, 2))])
def test_batch_and_accumulation_may_change_and_no_example_comes_twice(
    scenes: Path,
    tmp_path: Path,
    first: tuple[int, int],
    then: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    original = training_data.PairDataset.__getitem__
    monkeypatch.setattr(
        training_data.PairDataset, "__getitem__", lambda self, k: drawn.append(k) or original(self, k)
    )

    def with_batches(batch: int, accumulate: int, steps: int) -> RunConfig:
        config = with_trainer(run_config(tmp_path / "run", scenes, steps), accumulate=accumulate)
        quiet = with_trainer(config, sample_every=0, probe_every=0)
        return replace(quiet, data=replace(quiet.data, batch=batch))

    train(with_batches(*first, 2))
    train(with_batches(*then, 3))
    assert drawn == list(range(12))
    assert [row["step"] for row in rows(tmp_path / "run")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: DataConfig(datasets=Path("d.yaml"), true_depth=True), "data.true_depth is for data.scenes"),
        (lambda: DataConfig(datasets=Path("d.yaml"), more=(Path("b"),)), "data.more is for data.scenes"),
        (
            lambda: DataConfig(datasets=Path("d.yaml"), more=(Path("b"),), weights=(1, 2), true_depth=True),
            "data.more, data.weights, data.true_depth is for data.scenes and has no effect with",
        ),
        (lambda: DataConfig(datasets=Path("d.yaml"), weights=(1,)), "data.weights is for data.scenes"),
        (lambda: CompositorTrainConfig(hold=0.3), "train.hold=0.3 has no effect with train.final_lr=1"),
        (
            lambda: RunConfig(Path("a"), pretrained=Path("b"), first_stage=Path("c")),
            "first_stage=c is for fresh networks and has no effect with pretrained=b",
        ),
    ],
)
def test_a_key_without_effect_beside_another_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [
        ("block_channels", (32, 64), r"\(16, 32\)"),
        ("token_width", 48, "24"),
        ("layers_per_block", 3, "1"),
    ],
)
def test_sizes_of_fresh_networks_that_the_folder_has_not_are_refused(
    small_compositor: Path, tmp_path: Path, key: str, value: object, there: str
) -> None:
    config = RunConfig(tmp_path, pretrained=small_compositor, network=SMALL)
    assert starting_model(config).unet.config.block_out_channels == [16, 32]
    changes: dict[str, Any] = {key: value}
    wrong = replace(config, network=replace(SMALL, **changes))
    with pytest.raises(ValueError, match=f"network.{key}=.* has no effect with pretrained=.*: {there} there"):
        starting_model(wrong)
