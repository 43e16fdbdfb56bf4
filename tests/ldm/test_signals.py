"""Ctrl-C and SIGTERM save the state of one step, and the run that goes on ends as if they had not come."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cldm.training.data import start_worker
from cldm.training.run import train as train_compositor
from ldm.settings.config import load_config
from ldm.training.fit import Task, fit
from ldm.training.run import CHECKPOINT_PREFIX, STATE, numbered_folders
from ldm.training.settings import FitConfig
from ldm.training.signals import signals_noted
from tests.cldm.test_train import run_config, scenes
from tests.cldm.test_train_run import with_trainer
from tests.ldm.fit_job import SMALL, Net, Numbers, loss
from tiny.loop import Stage
from tiny.settings import StageSettings

__all__ = ["scenes"]  # a fixture
TIMED = ("samples_per_second", "seconds")


@pytest.fixture(autouse=True)
def sigterm_exits() -> None:
    """As in every command."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)


SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


def noted(*events: int | BaseException | Callable[[list[int]], None]) -> None:
    with signals_noted() as came:
        for event in events:
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, int):
                signal.raise_signal(event)
            else:
                event(came)


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_a_signal_waits_for_the_end_of_the_step_and_a_second_one_does_not(number, error) -> None:
    reached: list[int] = []
    with pytest.raises(error):
        noted(number, reached.extend)
    assert reached == [number]
    with pytest.raises(error):
        noted(number, number, lambda came: pytest.fail("the second one waited"))
    noted(reached.extend)
    assert reached == [number]


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ((signal.SIGINT, ValueError("no space")), ValueError),
        ((signal.SIGINT, SystemExit(0)), KeyboardInterrupt),  # how Lightning ends
        ((SystemExit(3),), SystemExit),
    ],
)
def test_an_error_after_a_signal_is_the_error_and_an_exit_of_a_library_is_the_signal(events, error) -> None:
    with pytest.raises(error):
        noted(*events)


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_noted() as came:
        signal.raise_signal(signal.SIGINT)
    assert came == []


def loader_of_fit() -> DataLoader:
    return Task(loss, Numbers(6)).loader(Numbers(6), [[index] for index in range(6)], 1)


def loader_of_compositor() -> DataLoader:
    cv2.setNumThreads(1)  # as the compositor's data does before it starts processes
    return DataLoader(Numbers(6), num_workers=1, worker_init_fn=start_worker)


@pytest.mark.parametrize("make", [loader_of_fit, loader_of_compositor])
def test_loader_processes_outlive_a_signal_to_all_and_end_with_their_owner(make) -> None:
    """torchrun and SLURM signal all processes, while the owner still reads the examples of its step."""
    loader = iter(make())
    torch.testing.assert_close(next(loader)["x"], Numbers(6)[0]["x"][None])
    (process,) = loader._workers
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    assert len(list(loader)) == 5
    process.join(10)
    assert process.exitcode == 0


def test_a_loader_process_that_hangs_is_ended_by_its_owner() -> None:
    (process,) = iter(Task(loss, Numbers(pause=60)).loader(Numbers(pause=60), [[0]], 1))._workers  # type: ignore
    time.sleep(0.3)
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def contents(folder: Path) -> dict[str, object]:
    """Path -> contents, less what tells the time."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".csv":
            with path.open() as file:
                rows = list(csv.DictReader(file))
            found[name] = [{key: row[key] for key in row if key not in TIMED} for row in rows]
        elif path.name not in (STATE, "manifest.json", "config.yaml", "run.json"):
            found[name] = path.read_bytes()
        elif path.name == STATE:
            state = torch.load(path, weights_only=True)
            found[name] = str({key: state[key] for key in ("optimizer", "optimizer_states") if key in state})
    return found


def fit_numbers(out: Path, at: tuple[int, ...] = (), number: int = signal.SIGINT) -> None:
    calls = []

    def interrupting(model: nn.Module, batch: dict[str, Tensor], seeds: list[int]) -> Tensor:
        calls.append(seeds)
        if model.training and len(calls) in at:
            signal.raise_signal(number)
        return loss(model, batch, seeds)

    config = load_config(FitConfig, None, [*SMALL, "save_every=6", "save_epochs=false", "log_every=4"])
    fit(config, out, Net(), Task(interrupting, Numbers()))


def small_stage(out: Path, at: tuple[int, ...] = (), number: int = signal.SIGINT) -> Stage:
    torch.manual_seed(3)
    model = nn.Linear(3, 1)
    stage = Stage("error", model, StageSettings(steps=9, log_every=4, warmup=2, ema=0.9, bf16=False), out)
    first = stage.step

    def interrupting(step: int) -> tuple[Tensor, dict[str, float]]:
        if step - first + 1 in at:
            signal.raise_signal(number)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        error = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return error, {"twice": 2 * error.item()}

    return stage.train(interrupting)


@pytest.mark.parametrize(("number", "error"), SIGNALS)
@pytest.mark.parametrize("work", [fit_numbers, small_stage])
def test_a_run_that_is_interrupted_again_and_again_ends_the_same(tmp_path: Path, work, number, error) -> None:
    work(tmp_path / "whole")
    for at in (5, 1, 2):  # also twice within one row of the table, and in the first step
        with pytest.raises(error):
            work(tmp_path / "parts", (at,), number)
    work(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_an_interruption_saves_its_step_and_keeps_the_checkpoints_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_numbers(tmp_path, (14,))
    steps = [int(path.name.removeprefix(CHECKPOINT_PREFIX)) for path in numbered_folders(tmp_path)]
    assert steps == [6, 12, 14]
    stage = tmp_path / "stage"
    with pytest.raises(KeyboardInterrupt):
        small_stage(stage, (3,))
    assert torch.load(stage / "state.pt", weights_only=True)["step"] == 3
    assert not (stage / "log.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_training_of_the_compositor_saves_when_it_is_interrupted(
    scenes: Path, tmp_path: Path, monkeypatch, number, error
) -> None:
    config = {name: with_trainer(run_config(tmp_path / name, scenes, 4), save_every=2, log_every=3)
              for name in ("whole", "parts")}  # fmt: skip
    train_compositor(config["whole"])
    step = torch.optim.AdamW.step

    def interrupting(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        """The signal comes when the weights have changed and the counter has not."""
        result = step(self, *args, **kwargs)
        os.kill(os.getpid(), number)
        return result

    for _ in range(3):
        monkeypatch.setattr(torch.optim.AdamW, "step", interrupting)
        with pytest.raises(error):
            train_compositor(config["parts"])
        monkeypatch.undo()
    assert (tmp_path / "parts/checkpoints/step-00000003").is_dir()
    train_compositor(config["parts"])
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("renamed", ["step-00000002", "model", "manifest.json", "refusals.json"])
def test_a_compositor_killed_before_any_rename_goes_on(scenes, tmp_path, monkeypatch, renamed) -> None:
    config = {name: with_trainer(run_config(tmp_path / name, scenes, 2), save_every=2, log_every=1)
              for name in ("whole", "parts")}  # fmt: skip
    train_compositor(config["whole"])
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == renamed:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        train_compositor(config["parts"])
    monkeypatch.undo()
    train_compositor(config["parts"])
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    (tmp_path / "parts" / "checkpoints" / "step-00000002").rename(tmp_path / "away")  # by its user
    with pytest.raises(ValueError, match="holds a model but no checkpoint"):
        train_compositor(config["parts"])
