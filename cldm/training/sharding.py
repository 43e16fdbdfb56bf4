"""Fully sharded training (FSDP2): weights, gradients, optimizer and average are shared out among the devices.

Checkpoints hold whole tensors, so a run can go on with another number of devices, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from cldm.model import Compositor


def shard(model: Compositor, mesh: DeviceMesh) -> None:
    """Share every parameter out over a one-dimensional mesh, but those of the autoencoder, which is small.

    Units are the blocks of the three UNet halves and the layers of the image encoder: as much as one device
    holds whole at a time.
    """
    branches = (model.detail, model.depth)
    units: list[nn.Module] = []
    for net in (model.unet, *(branch.net for branch in branches)):
        units += [*net.down_blocks, net.mid_block, *getattr(net, "up_blocks", ())]
    units += model.identity.encoder.encoder.layer
    for module in (*units, *branches, model.unet, model.identity):  # inner ones first
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for branch in branches:
        register_fsdp_forward_method(branch, "embed")


def gathered(value: Tensor, keep: bool) -> Tensor:
    """A tensor, whole and on the CPU, where `keep`; empty elsewhere. All devices must call it together."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if keep else torch.empty(0)


def shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This device's share of a whole tensor, laid out like `parameter`, or the tensor where that is whole."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def finished_weights(module: nn.Module, average: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Averages by name, and whole every other parameter that is shared out, on the CPU, where `keep`."""
    shared = {name: one for name, one in module.named_parameters() if isinstance(one, DTensor)}
    return {name: gathered(value, keep) for name, value in {**shared, **average}.items()}


@contextmanager
def plain_model(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, parameters of these names are other tensors and no module is of a sharding class."""
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in values]
    before = [module._parameters[leaf] for module, leaf in places]
    classes = [(module, type(module)) for module in model.modules() if isinstance(module, FSDPModule)]
    for (module, leaf), value in zip(places, values.values(), strict=True):
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    for module, sharding_class in classes:  # made by fully_shard as (FSDPModule, the module's own class)
        module.__class__ = sharding_class.__bases__[1]
    try:
        yield
    finally:
        for (module, leaf), parameter in zip(places, before, strict=True):
            module._parameters[leaf] = parameter
        for module, sharding_class in classes:
            module.__class__ = sharding_class


def takes_part(trainer: pl.Trainer) -> bool:
    """Whether this process runs the model beside its training step: the first one, or all that share it."""
    return trainer.is_global_zero or isinstance(trainer.strategy, Sharded)


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy for data-parallel training, with whole tensors in its checkpoints."""

    def __init__(self, devices: int) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole on the first device."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        return {name: gathered(value, self.is_global_zero) for name, value in named if value.requires_grad}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as one device would have it, on the first device."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        found = plain.state_dict()
        keep = self.is_global_zero
        states = {
            index: {key: gathered(value, keep) for key, value in state.items()}
            for index, state in found["state"].items()
        }
        return {**found, "state": states}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                parameters[name].copy_(shared_like(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            states = {
                index: {key: shared_like(value, parameters[index]) for key, value in state.items()}
                for index, state in found["state"].items()
            }
            optimizer.load_state_dict({**found, "state": states})
