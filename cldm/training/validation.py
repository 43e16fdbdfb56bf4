"""The held-out loss of a run, and its best step."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import pytorch_lightning as pl
import torch

from cldm.training.module import CompositorModule
from cldm.training.settings import RunConfig
from datasets.examples import collate_pairs
from ldm.training.run import CsvLogger


@contextmanager
def averaged(module: CompositorModule) -> Iterator[None]:
    """The module with the averaged weights (EMA), where they are kept."""
    if module.average is None:
        yield
        return
    module.average.store(module.parameters_to_train)
    module.average.copy_to(module.parameters_to_train)
    try:
        yield
    finally:
        module.average.restore(module.parameters_to_train)


class Validation(pl.Callback):
    """Every `validation.every` steps the mean loss over the held-out examples, in all and by source.

    Examples, noise and timesteps are always the same, the timesteps spread evenly; no condition is dropped.
    The rows stand in validation.csv. SaveModel keeps the checkpoint of `best_step`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.settings, self.file = config.validation, CsvLogger(config.out / "validation.csv")
        self.best, self.best_step, self.step = inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "measured": self.settings.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["measured"] == self.settings.measured:  # the loss over other examples is another one
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        if trainer.is_global_zero and self.file.path.is_file():
            self.file.truncate(self.step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step = trainer.global_step
        if step == self.step or not self.settings.measured or step % self.settings.every:
            return
        self.step = step
        row = self.losses(trainer, pl_module)
        if row["loss"] < self.best:
            self.best, self.best_step = row["loss"], step
        if trainer.is_global_zero:
            self.file.append({"step": step, **row})
            if trainer.logger is not None:
                trainer.logger.log_metrics({f"validation/{name}": value for name, value in row.items()}, step)

    @torch.no_grad()
    def losses(self, trainer: pl.Trainer, module: CompositorModule) -> dict[str, float]:
        """`loss` over all examples, each device its part, and that of every source by its name."""
        data, count = trainer.datamodule.held_out, self.settings.examples  # type: ignore[attr-defined]
        names, world = trainer.datamodule.held_out_names, trainer.world_size  # type: ignore[attr-defined]
        sums = torch.zeros(2, len(names), device=module.device)
        with averaged(module), trainer.precision_plugin.forward_context():
            for k in range(trainer.global_rank, -(-count // world) * world, world):  # equally many on each
                sample = data[k % count]
                batch = {key: value.to(module.device) for key, value in collate_pairs([sample]).items()}
                loss = module.held_out_loss(batch, k % count, count)
                sums[:, sample.source] += torch.stack([loss, torch.ones_like(loss)]) * (k < count)
        total, number = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        by_source = {name: float(total[i] / number[i]) for i, name in enumerate(names) if number[i]}
        return {"loss": float(total.sum() / number.sum()), **(by_source if len(names) > 1 else {})}
