"""Checkpoints of a run under Lightning: folders with the files of `ldm.training`, and run.json, what the
run was begun with. Fully sharded training (FSDP2).

Sharded, weights, gradients, optimizer and average are split among the devices. Checkpoints hold whole
tensors, so a run can continue with another number of devices, sharded or not.
"""

import csv
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from cldm.model import Compositor
from cldm.training.settings import RunConfig
from datasets.sources.registry import DatasetsConfig
from ldm.files import hash_model, read_json, read_text, write_atomic, write_json
from ldm.settings.config import dump_yaml, load_config, yaml_layers
from ldm.settings.schema import flat, flat_settings, members, to_plain
from ldm.training.run import STATE, Layout, read_files, trained, write_checkpoint

log = logging.getLogger(__name__)

RECORD = "run.json"
# Keys, and sections with a dot, that decide neither examples nor loss: they take effect where a run goes on.
MAY_CHANGE = (
    "out", "name", "notice", "sampling.", "validation.", "trainer.", "data.batch", "data.workers",
    "data.stop_after", "train.lr", "train.final_lr", "train.hold", "train.warmup", "train.betas",
    "train.weight_decay", "train.shard_optimizer", "train.attention", "train.gradient_checkpointing",
)  # fmt: skip
FOLDERS = ("pretrained", "first_stage")  # may move, as their hashes are compared
STEP = ("data.batch", "trainer.accumulate", "trainer.devices", "trainer.nodes")  # their product must stay
# Of what trains: whole tensors, on the CPU of the first device when they are read.
WHOLE = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


def shard(model: Compositor, mesh: DeviceMesh) -> None:
    """Shard all but the small autoencoder, by the blocks of the UNets and layers of the image encoder."""
    branches = (model.detail, model.depth)
    units: list[nn.Module] = []
    for net in (model.unet, *(branch.net for branch in branches)):
        units += [*net.down_blocks, net.mid_block, *getattr(net, "up_blocks", ())]
    units += model.identity.encoder.encoder.layer
    for module in (*units, *branches, model.unet, model.identity):  # inner ones first
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for branch in branches:
        register_fsdp_forward_method(branch, "embed")


def runs_model(trainer: pl.Trainer) -> bool:
    """Whether this process runs the model beside its training step: the first one, or all that share it."""
    return trainer.is_global_zero or isinstance(trainer.strategy, Sharded)


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy for data-parallel training, with checkpoints as one device writes them."""

    lightning_restore_optimizer = True  # type: ignore[assignment]

    def __init__(self, devices: int) -> None:
        super().__init__(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return dcp.get_model_state_dict(self.module, options=WHOLE)

    def load_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        dcp.set_model_state_dict(self.module, dict(checkpoint["state_dict"]), options=WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state by number of the parameter, on the first device."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = dcp.get_optimizer_state_dict(self.module, plain, options=WHOLE)
        return rekeyed(state, {name: index for index, name in enumerate(trained(self.module))})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        names = dict(enumerate(trained(self.module)))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            dcp.set_optimizer_state_dict(self.module, optimizer, rekeyed(state, names), options=WHOLE)

    @property
    def module(self) -> pl.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module


def rekeyed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other keys for its parameters; an empty one stays empty."""
    if not state:
        return {}
    groups = [{**group, "params": [new[k] for k in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[k]: v for k, v in state["state"].items()}, "param_groups": groups}


def step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix == "" and (path / STATE).is_file())


class SplitCheckpoint(CheckpointIO):
    """checkpoints/step-00000250/ with weights and average .safetensors, state.pt, and record as run.json."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "average")}
        layout = Layout(beside=lambda folder: write_json(folder / RECORD, self.record))
        write_checkpoint(Path(path), layout, checkpoint["state_dict"], state, checkpoint.get("average"))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict:
        """The checkpoint as it was given to `save_checkpoint`, on the CPU. Nothing but data is unpickled."""
        weights, state, average = read_files(Path(path), Layout())
        return {**state, "state_dict": weights} | ({} if average is None else {"average": average})

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


class Change(NamedTuple):
    key: str
    was: Any
    now: Any


def run_record(config: RunConfig, items: Mapping[str, int]) -> dict[str, Any]:
    """What checkpoints hold. items: number of items of each source by its name."""
    hashes, mixture = dict[str, str](), dict[str, Any](items=dict(items))
    for name in FOLDERS:
        if (folder := getattr(config, name)) is not None:
            hashes[name] = hashlib.sha256(json.dumps(hash_model(folder), sort_keys=True).encode()).hexdigest()
    if config.data.datasets is not None:
        settings = load_config(DatasetsConfig, config.data.datasets)
        for name in items:  # files may move, so paths are left out
            section, hints = getattr(settings, name), flat_settings(type(getattr(settings, name)))
            kept = {k: v for k, v in flat(to_plain(section)).items() if Path not in members(hints[k][1])}
            mixture[name] = {"weight": settings.weights[name], **kept}
    return {"config": to_plain(config), "mixture": mixture, "hashes": hashes}


def check_resumed(config: RunConfig, record: Mapping[str, Any], checkpoint: Path) -> list[Change]:
    """What has changed since a checkpoint was written and may; ValueError names all that may not."""
    defaults = flat(to_plain(RunConfig(out=config.out)))  # of keys that the version of then did not have
    file, written = checkpoint / RECORD, config.out / "config.yaml"
    if file.is_file():
        old = read_json(file)
    else:
        log.warning("%s is of an earlier version: data and model folders are not compared", checkpoint)
        values = yaml_layers(written)[-1].values if written.is_file() else record["config"]
        old, record = {"config": values}, {"config": record["config"]}

    def facts(given: Mapping[str, Any]) -> dict[str, Any]:
        found = defaults | flat(given["config"])
        found[" x ".join(STEP)] = prod(found[key] for key in STEP)
        return found | flat({part: given.get(part, {}) for part in ("mixture", "hashes")})

    was, now = facts(old), facts(record)
    changed = [Change(key, was.get(key), now.get(key)) for key in was | now if was.get(key) != now.get(key)]
    sections = tuple(key for key in MAY_CHANGE if key[-1] == ".")
    same = [key for key in FOLDERS if was.get(f"hashes.{key}") == now.get(f"hashes.{key}") is not None]
    allowed = [one for one in changed if one.key in (*MAY_CHANGE, *same) or one.key.startswith(sections)]
    if refused := [one for one in changed if one not in allowed]:
        listed = "; ".join(f"{one.key} {one.was!r}, now {one.now!r}" for one in refused)
        advice = f"use the same settings, or another out, with pretrained={config.out}/model"
        raise ValueError(f"{checkpoint} was begun with {listed}; {advice}")
    return allowed


@rank_zero_only
def write_settings(config: RunConfig, changes: Sequence[Change], step: int) -> None:
    """config.yaml of the run folder, and a row of changes.csv for each change that takes effect at a step."""
    path, written = config.out / "changes.csv", config.out / "config.yaml"
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    for key, was, now in changes:
        log.info("from step %d on %s is %s, was %s", step, key, now, was)
        rows.writerow((step, key, was, now))
    before = read_text(path) if path.is_file() else "step,key,was,now\n"
    if changes and not before.endswith(table.getvalue()):  # as when it was stopped before its next checkpoint
        write_atomic(path, (before + table.getvalue()).encode())
    if not written.is_file() or read_text(written) != dump_yaml(config):
        write_atomic(written, dump_yaml(config).encode())
