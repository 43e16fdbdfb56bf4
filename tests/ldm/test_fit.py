"""The accelerate loop: a run that was killed, split or shared out ends as if nothing had happened."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.seeds import seed_of
from ldm.settings.config import load_config
from ldm.training.fit import Task, fit, make_accelerator
from ldm.training.run import checkpoint_folders
from ldm.training.settings import FitConfig, ResumableSampler, TrainingProgress
from tests.conftest import ROOT
from tests.ldm.fit_job import Net, Numbers, loss, train

STEPS = 18  # 3 epochs of 22 examples in batches of 4


def rows(out: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (out / name).open() as file:
        return list(csv.DictReader(file))


def curve(out: Path) -> list[list[float]]:
    return [[float(row[name]) for name in ("step", "epoch", "loss", "lr", "grad_norm")] for row in rows(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folders(out)[-1] / "adapter" / "numbers.safetensors")


def assert_same(one: Path, other: Path, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-7}
    assert len(curve(one)) == len(curve(other)) > 0
    torch.testing.assert_close(curve(one), curve(other), **tolerance)
    torch.testing.assert_close(weights(one), weights(other), **tolerance)
    losses = [[float(row["loss"]) for row in rows(out, "validation.csv")] for out in (one, other)]
    torch.testing.assert_close(*losses, **tolerance)


def environment() -> dict[str, str]:
    outer = ("LOCAL_RANK", "WORLD_SIZE", "RANK")
    kept = {key: value for key, value in os.environ.items() if key not in outer}
    return {**kept, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(ROOT)}


def kill_after_rows(arguments: list[str], table: Path, count: int) -> None:
    """Start a run and kill -9 it as soon as its table has `count` rows."""
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(6000):
            if table.exists() and table.read_text().count("\n") > count:
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "whole"
    newest, _ = train(out, [])
    assert newest == out / f"checkpoint-{STEPS}"
    return out


def test_files_of_a_run(whole: Path):
    assert [int(row["step"]) for row in rows(whole)] == list(range(1, STEPS + 1))
    assert float(rows(whole)[-1]["loss"]) < 0.5 * float(rows(whole)[0]["loss"])
    assert [row["step"] for row in rows(whole, "validation.csv")] == ["6", "12", "18"]
    newest = checkpoint_folders(whole)[-1]
    assert {path.name for path in newest.iterdir()} == {"adapter", "state.pt"}
    assert weights(whole).keys() == {"net.trained.weight", "net.trained.bias"}
    assert len(checkpoint_folders(whole)) == 2
    assert not list(whole.glob("*.partial"))


def test_interrupted_between_epochs_and_within_one(whole: Path, tmp_path: Path):
    for steps in (4, 6, 11):
        train(tmp_path, ["schedule=constant", f"steps={steps}"])
    constant = tmp_path / "constant"
    train(constant, ["schedule=constant"])
    train(tmp_path, ["schedule=constant"])
    assert curve(tmp_path) == curve(constant) != curve(whole)


@pytest.mark.slow
def test_killed_and_started_again(whole: Path, tmp_path: Path):
    arguments = [sys.executable, "-m", "tests.ldm.fit_job", str(tmp_path / "run"), "0.02", "0.2"]
    csv_path = tmp_path / "run" / "metrics.csv"
    kill_after_rows(arguments, csv_path, 8)
    assert len(rows(tmp_path / "run")) < STEPS
    train(tmp_path / "run", [])
    assert_same(whole, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_with_half_the_batch(tmp_path: Path):
    """Dropout differs between processes by design, so it is off here."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    job = ["-m", "tests.ldm.fit_job", str(tmp_path / "two"), "0", "0", "batch=2", "accumulate=2"]
    done = subprocess.run(
        [*run, *job], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(tmp_path / "one", ["batch=4", "accumulate=2"], dropout=0.0)
    assert_same(tmp_path / "one", tmp_path / "two", rtol=1e-4, atol=1e-6)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path):
    many, one = Net(dropout=0.0), Net(dropout=0.0)
    small, large = (FitConfig(batch=4 * n, accumulate=2 // n, workers=0, steps=4, lr=0.01) for n in (1, 2))
    fit(small, tmp_path / "many", many, Task(loss, Numbers(16)))
    fit(large, tmp_path / "one", one, Task(loss, Numbers(16)))
    torch.testing.assert_close(many.trained.weight, one.trained.weight, rtol=1e-4, atol=1e-6)


def test_clipping_clips(tmp_path: Path):
    """With eps 1, Adam's first step is g / (|g| + 1) elementwise, so the step tells the gradient."""
    model = Net()
    start = model.trained.weight.clone()

    def steep(model: nn.Module, batch: dict, seeds: list[int]) -> torch.Tensor:
        return 1e4 * loss(model, batch, seeds)

    plain = {"lr": 1.0, "eps": 1.0, "weight_decay": 0.0, "schedule": "constant"}
    config = FitConfig(batch=4, steps=1, workers=0, clip=0.5, **plain)  # type: ignore[arg-type]
    fit(config, tmp_path / "clipped", model, Task(steep, Numbers()))
    step = (start - model.trained.weight).detach()
    gradient = step.abs() / (1 - step.abs())
    assert float(rows(tmp_path / "clipped")[0]["grad_norm"]) > 100
    assert float(gradient.norm()) < 0.51
    assert float(gradient.norm()) > 0.3  # the bias has the rest


def test_stops_early_and_keeps_the_best(tmp_path: Path):
    def worse(model: nn.Module, batch: dict, seeds: list[int]) -> torch.Tensor:
        sign = 1 if model.training else -1
        return sign * loss(model, batch, seeds) + 10

    config = FitConfig(batch=4, epochs=6, workers=0, lr=0.01, keep=1, save_every=0, patience=2)
    found = fit(config, tmp_path, Net(), Task(worse, Numbers(), held_out=Numbers(7)))
    assert found == (tmp_path / "checkpoint-18", tmp_path / "checkpoint-6")
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-6", "checkpoint-18"]
    assert fit(config, tmp_path, Net(), Task(worse, Numbers(), held_out=Numbers(7))) == found


def test_the_best_is_saved_wherever_it_is_found(tmp_path: Path):
    config = FitConfig(
        batch=4, epochs=2, workers=0, lr=0.01, save_every=0, save_epochs=False, keep=1, validate_every=4
    )
    _, found = fit(config, tmp_path, Net(), Task(loss, Numbers(), held_out=Numbers(7)))
    values = {row["step"]: float(row["loss"]) for row in rows(tmp_path, "validation.csv")}
    assert list(values) == ["4", "8", "12"]
    best = min(values, key=lambda step: values[step])
    assert found == tmp_path / f"checkpoint-{best}"
    assert found.is_dir()


def test_average_is_kept_and_resumed(tmp_path: Path):
    _, whole = train(tmp_path / "whole", ["ema=0.9"])
    train(tmp_path / "parts", ["ema=0.9", "steps=7", "schedule=constant"])
    _, constant = train(tmp_path / "constant", ["ema=0.9", "schedule=constant"])
    _, parts = train(tmp_path / "parts", ["ema=0.9", "schedule=constant"])
    assert torch.equal(parts.trained.weight, constant.trained.weight)
    newest = checkpoint_folders(tmp_path / "whole")[-1]
    average = load_file(newest / "average.safetensors")["net.trained.weight"]
    assert torch.equal(average, whole.trained.weight)
    assert not torch.equal(average, weights(tmp_path / "whole")["net.trained.weight"])
    with pytest.raises(ValueError, match="begun with ema"):
        train(tmp_path / "whole", ["epochs=4"])


def test_bf16_trains_single_precision_weights(tmp_path: Path):
    _, model = train(tmp_path, ["precision=bf16"])
    assert model.trained.weight.dtype == torch.float32
    assert float(rows(tmp_path)[-1]["loss"]) < 0.5 * float(rows(tmp_path)[0]["loss"])


def test_more_measures(tmp_path: Path):
    config = FitConfig(batch=4, steps=5, workers=0, validate_every=2)

    def norm(net: nn.Module) -> dict[str, float]:
        return {"norm": float(net.get_parameter("trained.weight").norm())}

    fit(config, tmp_path, Net(), Task(loss, Numbers(), measure=norm))
    found = rows(tmp_path, "validation.csv")
    assert [row["step"] for row in found] == ["2", "4", "5"]
    assert float(found[0]["norm"]) > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch=5"], r"begun with other settings: batch=5 \(was 4\)"),
        (["seed=6"], "seed=6"),
    ],
)
def test_what_is_refused_on_resuming(whole: Path, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        train(whole, overrides)


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    train(tmp_path, ["steps=3"])
    (tmp_path / "checkpoint-3" / "state.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"checkpoint-3: a damaged checkpoint"):
        train(tmp_path, ["steps=4"])


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="holds no examples"):
        fit(FitConfig(), tmp_path, Net(), Task(loss, []))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patience=1 needs a validation set"):
        fit(FitConfig(patience=1), tmp_path, Net(), Task(loss, Numbers()))
    with pytest.raises(ValueError, match="nothing to train"):
        fit(FitConfig(), tmp_path, Net().requires_grad_(False), Task(loss, Numbers()))

    def broken(model: nn.Module, batch: dict, seeds: list[int]) -> torch.Tensor:
        return loss(model, batch, seeds) * float("nan")

    with pytest.raises(ValueError, match="not finite after step"):
        fit(FitConfig(workers=0), tmp_path / "nan", Net(), Task(broken, Numbers()))
    assert not checkpoint_folders(tmp_path / "nan")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            make_accelerator(FitConfig(precision="fp16"), tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install wandb \(requirements-extras.txt\)"):
        make_accelerator(FitConfig(tracker="wandb"), tmp_path)
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="pip install wandb"):
        make_accelerator(FitConfig(tracker="wandb"), tmp_path)
    with pytest.raises(ValueError, match="schedule"):
        load_config(FitConfig, None, ["schedule=coSine"])


def test_every_example_once_per_epoch_whatever_the_processes():
    alone = ResumableSampler(23, 8, seed=3)
    assert sorted(sum(alone.epoch(4), [])) == list(range(23))
    assert alone.epoch(4) != alone.epoch(5)
    shared = [ResumableSampler(23, 4, 3, rank, 2).epoch(4) for rank in range(2)]
    assert [len(batch) for batch in shared[0]] == [len(batch) for batch in shared[1]] == [4, 4, 4]
    assert [a + b for a, b in zip(*shared, strict=True)][:2] == alone.epoch(4)[:2]
    assert {*sum(shared[0] + shared[1], [])} == set(range(23))
    assert ResumableSampler(3, 4, 0, 3, 4).batches == 1
    assert len(ResumableSampler(1, 4, 0, 3, 4).epoch(0)[0]) == 1


def test_seeds_follow_from_their_parts():
    assert seed_of(1, "a") == seed_of(1, "a")
    assert len({seed_of(1, "a"), seed_of("1", "a"), seed_of(1, "b"), seed_of("1a"), seed_of(1, 1, "a")}) == 5
    assert 0 <= seed_of(0) < 2**63


def test_no_patience_never_stops():
    progress = TrainingProgress()
    for value in (3.0, 4.0, 5.0):
        progress.note_validation(value, patience=0)
    assert (progress.best, progress.since_best, progress.stopped) == (3.0, 2, False)


def test_latest_without_any_checkpoint_is_the_start(tmp_path: Path):
    assert checkpoint_folders(tmp_path) == []


def test_learning_rates_by_name(tmp_path: Path):
    model = Net()
    bias = model.trained.bias.detach().clone()
    config = FitConfig(batch=4, steps=3, workers=0, lr=0.01, weight_decay=0.0)

    def rates(name: str) -> float:
        return 0.0 if name.endswith("bias") else 0.02

    fit(config, tmp_path, model, Task(loss, Numbers(), rates=rates))
    assert torch.equal(model.trained.bias, bias)
    assert float(rows(tmp_path)[-1]["lr"]) == 0.02
