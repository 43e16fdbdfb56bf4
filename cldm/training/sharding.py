"""Lightning's checkpoints as folders with the files of `ldm.training`, and fully sharded training (FSDP2).

Sharded, weights, gradients, optimizer and average are split among the devices. Checkpoints hold whole
tensors, so a run can continue with another number of devices, sharded or not.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from cldm.model import Compositor
from cldm.training.resume import RECORD
from ldm.files import write_json
from ldm.training.run import STATE, Layout, read_files, trained, write_checkpoint

# Of what trains: whole tensors, on the CPU of the first device when they are read.
WHOLE = states.StateDictOptions(
    full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False
)


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
        return states.get_model_state_dict(self.module, options=WHOLE)

    def load_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        states.set_model_state_dict(self.module, dict(checkpoint["state_dict"]), options=WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state by number of the parameter, on the first device."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = states.get_optimizer_state_dict(self.module, plain, options=WHOLE)
        return rekeyed(state, {name: index for index, name in enumerate(trained(self.module))})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        names = dict(enumerate(trained(self.module)))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            states.set_optimizer_state_dict(self.module, optimizer, rekeyed(state, names), options=WHOLE)

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
    """All whole checkpoints of a run, oldest first."""
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
