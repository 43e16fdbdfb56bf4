"""Checkpoints of a run: only what trains, in three files of one folder that appears whole or not at all.

checkpoints/step-00000250/weights.safetensors   trained weights, in the precision of training
                          average.safetensors   their running average, where one is kept
                          state.pt              optimizer, schedule, progress
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints import folder_written_whole

PARTS = {"state_dict": "weights.safetensors", "average": "average.safetensors"}
STATE = "state.pt"


def checkpoint_folders(folder: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if path.suffix == "" and (path / STATE).is_file()]
    return sorted(found, key=lambda path: path.name)


class SplitCheckpoint(CheckpointIO):
    """Lightning's checkpoint as a folder: weights as safetensors, the rest apart."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        rest = {key: value for key, value in checkpoint.items() if key not in PARTS}
        with folder_written_whole(Path(path)) as partial:
            for key, name in PARTS.items():
                if checkpoint.get(key):
                    save_file(to_cpu(checkpoint[key]), partial / name)
            torch.save(rest, partial / STATE)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint as it was given to `save_checkpoint`, on the CPU. Nothing but data is unpickled."""
        folder = Path(path)
        try:
            checkpoint: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            for key, name in PARTS.items():
                if (folder / name).is_file():
                    checkpoint[key] = load_file(folder / name)
        except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError):
            raise ValueError(
                f"{folder}: a damaged checkpoint; remove it to go on from the one before"
            ) from None
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def to_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in weights.items()}


class Checkpoints(pl.Callback):
    """Writes a checkpoint every `every` steps and at the end; only the last `keep` stay.

    It must be the last callback, so that the states of the others are those after the step.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.saved = -1  # step

    def save(self, trainer: pl.Trainer) -> None:
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}")
        if trainer.is_global_zero:
            for old in checkpoint_folders(self.folder)[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        step = trainer.global_step
        if step != self.saved and (step % self.every == 0 or step == trainer.max_steps):
            self.save(trainer)
