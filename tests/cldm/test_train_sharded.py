"""Fully sharded training on two processes: it is the run of one process, and can go on as one."""

import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cldm.model import load_compositor
from cldm.training.run import train
from cldm.training.settings import RunConfig
from tests.cldm.test_train import run_config, scenes
from tests.cldm.test_train_run import checkpoint, command, curve, run, with_trainer
from tests.conftest import ROOT
from tests.ldm.test_fit import environment

__all__ = ["scenes"]  # a fixture


def shared_out(config: RunConfig, out: Path) -> RunConfig:
    """The same run on two devices that share the model."""
    two = with_trainer(replace(config, out=out), devices=2, strategy="fsdp")
    return replace(two, data=replace(two.data, batch=1))


def test_settings_that_exclude_each_other_are_refused(tmp_path: Path):
    config = run_config(tmp_path / "run", tmp_path, 1)
    with pytest.raises(ValueError, match="needs several devices"):
        with_trainer(config, strategy="fsdp")
    with pytest.raises(ValueError, match="got 16-mixed"):
        with_trainer(config, strategy="fsdp", devices=2, precision="16-mixed")
    sharded = shared_out(config, tmp_path / "two")
    with pytest.raises(ValueError, match="shard_optimizer"):
        replace(sharded, train=replace(sharded.train, shard_optimizer=True))


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["published", "all"])
def test_two_processes_share_the_model_and_train_like_one(scenes: Path, tmp_path: Path, trainable: str):
    """Losses, clipped gradients, weights, average and model folder; stopped, continued sharded and as one."""
    config = with_trainer(run_config(tmp_path / "one", scenes, 6), log_every=2, clip=0.5, probe_every=2)
    changed = replace(config.train, trainable=trainable, mask_weight=0.0)
    config = replace(config, train=changed)
    train(config)
    two = shared_out(with_trainer(config, sample_every=3), tmp_path / "two")
    arguments = command(two, tmp_path)
    run(arguments)
    torch.testing.assert_close(curve(two.out), curve(config.out), rtol=1e-3, atol=1e-4)
    middle, end, other = checkpoint(config.out, 3), checkpoint(config.out, 6), checkpoint(two.out, 6)
    assert (end - other).norm() < 0.02 * (end - middle).norm()  # AdamW enlarges rounding of small gradients
    assert len(list((two.out / "samples").iterdir())) == 2
    for name in ("weights", "average"):
        single, sharded = (
            load_file(folder / "checkpoints" / "step-00000006" / f"{name}.safetensors")
            for folder in (config.out, two.out)
        )
        assert {key: value.shape for key, value in single.items()} == {
            key: value.shape for key, value in sharded.items()
        }
    torch.testing.assert_close(sharded, single, rtol=5e-3, atol=1e-4)  # the averages
    models = [load_compositor(folder / "model")[0].state_dict() for folder in (config.out, two.out)]
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value, msg=key, rtol=5e-3, atol=5e-3)
    shutil.rmtree(two.out / "checkpoints" / "step-00000006")
    alone = tmp_path / "alone"
    shutil.copytree(two.out, alone)
    run(arguments)
    torch.testing.assert_close(checkpoint(two.out, 6), other, rtol=1e-4, atol=1e-5)
    train(replace(config, out=alone))
    assert (checkpoint(alone, 6) - other).norm() < 0.02 * (end - middle).norm()


@pytest.mark.slow
@pytest.mark.parametrize("told", ["0", "1"])
def test_sigterm_to_one_of_two_processes_saves_one_step_and_ends_both(
    scenes: Path, tmp_path: Path, told: str
):
    """By torchrun or srun on two nodes: no process hangs, none ends as if the training were done."""
    config = with_trainer(run_config(tmp_path / "two", scenes, 2000), devices=2, log_every=2, save_every=2000)
    config = replace(config, data=replace(config.data, batch=1))
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    shared = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    if told == "0":
        shared |= {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    else:
        shared |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_NODEID": "0"}
        shared |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    started = {}
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank}
        if told == "1":
            own |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        started[rank] = subprocess.Popen(command(config, tmp_path), cwd=ROOT, env=shared | own)
    try:
        metrics = config.out / "metrics.csv"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert {process.poll() for process in started.values()} == {None}
            time.sleep(0.05)
        started[told].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in started.values()] == [143, 143]
    finally:
        for process in started.values():
            process.kill()
    (saved,) = (config.out / "checkpoints").iterdir()
    assert int(saved.name[5:]) % 2 == 0
    assert int(saved.name[5:]) < 2000
