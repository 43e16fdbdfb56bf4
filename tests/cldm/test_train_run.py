"""A training run as a whole: killed and continued, on two devices, accumulated; its files."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cldm.training.run import SaveModel, make_trainer, train
from cldm.training.settings import RunConfig
from ldm.settings.config import dump_yaml
from tests.cldm.test_train import run_config, scenes, weights
from tests.conftest import ROOT

__all__ = ["scenes"]  # a fixture


def with_trainer(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, trainer=replace(config.trainer, **changes))  # type: ignore[arg-type]


def command(config: RunConfig, folder: Path) -> list[str]:
    file = folder / f"{config.out.name}.yaml"
    file.write_text(dump_yaml(config))
    return [sys.executable, "run_train_bifrost.py", str(file)]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def curve(run: Path) -> list[list[float]]:
    return [[float(row[name]) for name in ("step", "loss", "lr", "grad_norm")] for row in rows(run)]


def assert_same_run(one: Path, other: Path, **tolerance: float) -> None:
    """Same rows, same weights."""
    assert len(curve(one)) == len(curve(other))
    torch.testing.assert_close(curve(one), curve(other), **tolerance)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, msg=key, **tolerance)


def checkpoint(run: Path, step: int) -> torch.Tensor:
    """All trained weights of a checkpoint, as one vector."""
    stored = load_file(run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    return torch.cat([value.flatten().double() for value in stored.values()])


def environment() -> dict[str, str]:
    """One thread, no trace of an outer Lightning run."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(arguments: list[str]) -> None:
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def kill_after_rows(arguments: list[str], metrics: Path, count: int) -> None:
    """Start a run and kill -9 it as soon as its metrics file has `count` rows."""
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(2000):
            if metrics.exists() and metrics.read_text().count("\n") > count:
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def test_accumulated_batches_and_two_interruptions(scenes: Path, tmp_path: Path):
    config = with_trainer(run_config(tmp_path / "whole", scenes, 5), accumulate=2, save_every=2)
    config = replace(config, train=replace(config.train, min_snr=5.0))
    train(config)
    parts = replace(config, out=tmp_path / "parts")
    train(with_trainer(parts, max_steps=2))
    train(with_trainer(parts, max_steps=3))
    train(parts)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", rtol=1e-6, atol=1e-7)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [str(step) for step in range(1, 6)]


def test_checkpoints_hold_what_trains_and_the_newest_stay(scenes: Path, tmp_path: Path):
    base = run_config(tmp_path / "run", scenes, 5)
    config = replace(base, train=replace(base.train, trainable="published", train_projector=False))
    train(with_trainer(config, save_every=2, keep=2))
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-00000004", "step-00000005"]
    newest = tmp_path / "run" / "checkpoints" / folders[-1]
    assert {path.name for path in newest.iterdir()} == {
        "weights.safetensors", "average.safetensors", "state.pt", "run.json"}  # fmt: skip
    stored = load_file(newest / "weights.safetensors")
    assert stored.keys() == load_file(newest / "average.safetensors").keys()
    assert not [name for name in stored if ".identity." in name or ".latent_space." in name]
    assert not [name for name in stored if ".unet.down_blocks" in name or ".net.conv_in." in name]
    assert [name for name in stored if ".unet.up_blocks" in name]
    with pytest.raises(ValueError, match=r"train.train_projector False, now True; use the same settings, or"):
        train(with_trainer(replace(config, train=replace(config.train, train_projector=True)), max_steps=9))
    (newest / "state.pt").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        train(with_trainer(config, max_steps=9))


def test_a_folder_with_a_model_and_no_checkpoint_is_left_alone(scenes: Path, tmp_path: Path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        train(run_config(tmp_path / "run", scenes, 1))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_samples_probe_and_tracker(scenes: Path, tmp_path: Path):
    config = with_trainer(run_config(tmp_path / "run", scenes, 4), log_every=3, probe_every=2, sample_every=2)
    pytest.importorskip("tensorboard")
    train(with_trainer(config, tracker="tensorboard"))
    assert [row["step"] for row in rows(config.out)] == ["2", "3", "4"]
    changes = [row["change_detail"] for row in rows(config.out)]
    assert changes[1] == ""
    assert float(changes[0]) > 0
    assert {path.name for path in (config.out / "samples").iterdir()} == {
        "step-00000002.png", "step-00000004.png"}  # fmt: skip
    assert list((config.out / "tensorboard").iterdir())


def test_a_missing_tracker_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        make_trainer(with_trainer(run_config(tmp_path, tmp_path, 1), tracker="wandb"))


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_ends_as_if_nothing_happened(scenes: Path, tmp_path: Path):
    config = with_trainer(run_config(tmp_path / "whole", scenes, 24), save_every=4, log_every=1)
    train(config)
    config = replace(config, out=tmp_path / "killed")
    arguments = command(config, tmp_path)
    kill_after_rows(arguments, config.out / "metrics.csv", 10)
    assert len(rows(config.out)) >= 10
    assert not (config.out / "checkpoints" / "step-00000024").exists()
    run(arguments)
    assert_same_run(tmp_path / "whole", config.out, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("trainable", "shard"), [("published", True), ("all", False)])
def test_two_processes_train_like_one_with_twice_the_batch(
    scenes: Path, tmp_path: Path, trainable: str, shard: bool
):
    """No unused parameter, different examples on each device, gradients averaged, one file of metrics.

    The same with an optimizer whose state is shared out, which also continues from a checkpoint.
    """
    config = with_trainer(run_config(tmp_path / "one", scenes, 6), log_every=2)
    changed = replace(config.train, trainable=trainable, mask_weight=0.0, shard_optimizer=shard)
    config = replace(config, train=changed)
    train(config)
    two = with_trainer(replace(config, out=tmp_path / "two"), devices=2)
    arguments = command(replace(two, data=replace(two.data, batch=1)), tmp_path)
    run(arguments)
    torch.testing.assert_close(curve(two.out), curve(config.out), rtol=1e-3, atol=1e-4)
    middle, end, other = (checkpoint(config.out, 3), checkpoint(config.out, 6), checkpoint(two.out, 6))
    assert (end - other).norm() < 0.02 * (end - middle).norm()  # AdamW enlarges rounding of small gradients
    if shard:
        shutil.rmtree(two.out / "checkpoints" / "step-00000006")
        run(arguments)
        torch.testing.assert_close(checkpoint(two.out, 6), other, rtol=1e-4, atol=1e-5)


def test_a_training_in_a_thread_sets_no_handler(tmp_path: Path) -> None:
    saver: Any = object.__new__(SaveModel)
    saver.folder, saver.interrupted, saver.on_sigterm = tmp_path, False, signal.SIG_IGN
    with ThreadPoolExecutor() as threads:
        threads.submit(saver.on_train_start, SimpleNamespace(global_step=3), None).result()
    assert saver.step == 3
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
