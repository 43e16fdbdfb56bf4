"""Lightning's checkpoints as folders with the files of `ldm.training`: what trains, its average, the rest."""

import shutil
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from ldm.training.checkpoints import STATE, Layout, read_files, write_checkpoint


def step_folders(folder: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix == "" and (path / STATE).is_file())


class SplitCheckpoint(CheckpointIO):
    """checkpoints/step-00000250/ with weights.safetensors, average.safetensors and state.pt."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "average")}
        write_checkpoint(Path(path), Layout(), checkpoint["state_dict"], state, checkpoint.get("average"))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint as it was given to `save_checkpoint`, on the CPU. Nothing but data is unpickled."""
        weights, state, average = read_files(Path(path), Layout())
        return {**state, "state_dict": weights} | ({} if average is None else {"average": average})

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
