"""Checkpoints of a run: only what trains, in three files of one folder that appears whole or not at all.

checkpoints/step-00000250/weights.safetensors   trained weights, in the precision of training
                          average.safetensors   their running average, where one is kept
                          state.pt              optimizer, schedule, progress
"""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldm.checkpoints import folder_written_whole
from ldm.training.checkpoints import STATE

PARTS = {"state_dict": "weights.safetensors", "average": "average.safetensors"}


def step_folders(folder: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix == "" and (path / STATE).is_file())


class SplitCheckpoint(CheckpointIO):
    """Lightning's checkpoint as a folder: weights as safetensors, the rest apart."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with folder_written_whole(Path(path)) as partial:
            for key, name in PARTS.items():
                if checkpoint.get(key):
                    weights = {k: value.detach().cpu().contiguous() for k, value in checkpoint[key].items()}
                    save_file(weights, partial / name)
            rest = {key: value for key, value in checkpoint.items() if key not in PARTS}
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
