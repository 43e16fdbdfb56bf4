"""Checkpoints and the table of numbers of a training run that may end at any moment.

out/checkpoint-250/<file of the layout>    trained weights as safetensors, in the caller's layout
                   average.safetensors     their running average, where one is kept
                   state.pt                optimizer, schedule, progress
A checkpoint folder appears whole or not at all.
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.checkpoints import folder_written_whole
from ldm.files import full_disk_named, write_atomic

log = logging.getLogger(__name__)

STATE, AVERAGE = "state.pt", "average.safetensors"
CHECKPOINT_PREFIX = "checkpoint-"


@dataclass
class TrainingProgress:
    """Where a run stands."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    batch: int = 0  # batches of this epoch done, per process
    loss_sum: float = 0.0  # of the batches since the last row, mean over processes
    loss_count: int = 0
    best: float = math.inf  # lowest validation loss
    best_step: int = 0
    since_best: int = 0  # validations
    stopped: bool = False
    seconds: float = 0.0  # spent on this run, interruptions left out

    def note_validation(self, loss: float, patience: int) -> None:
        """Note a validation loss; `patience` of them in a row that are not lower stop the run (0 = never)."""
        if loss < self.best:
            self.best, self.best_step, self.since_best = loss, self.step, 0
            return
        self.since_best += 1
        if patience and self.since_best >= patience:
            self.stopped = True
            log.info("stopped after step %d: the lowest validation loss stays %.5g", self.step, self.best)


@dataclass(frozen=True)
class Layout:
    """How the trained weights lie in a checkpoint folder.

    file: path inside the folder;  key: parameter name -> key in the file, one to one
    beside: writes what else belongs to the weights, such as a configuration, into the folder
    """

    file: str = "weights.safetensors"
    key: Callable[[str], str] = str
    beside: Callable[[Path], None] | None = None


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def numbered_folders(out: Path) -> list[Path]:
    """What is named like a checkpoint, oldest first; half-written ones are named otherwise."""
    steps = [path.name.removeprefix(CHECKPOINT_PREFIX) for path in out.glob(f"{CHECKPOINT_PREFIX}*")]
    return [out / f"{CHECKPOINT_PREFIX}{step}" for step in sorted(filter(str.isdecimal, steps), key=int)]


def checkpoint_folders(out: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    return [path for path in numbered_folders(out) if (path / STATE).is_file()]


def chosen_checkpoint(out: Path, resume: str) -> Path | None:
    """Where a run goes on. resume: `latest` (from the start if there is none), `none`, or a folder's name.

    A name must be that of the newest checkpoint, and `none` needs a folder without any, so that nothing is
    overwritten.
    """
    found = checkpoint_folders(out)
    if resume == "latest":
        return found[-1] if found else None
    if resume == "none":
        if found:
            raise ValueError(f"resume=none, but {out} holds {found[-1].name}: choose another folder")
        return None
    named = [path for path in found if path.name == resume]
    if not named:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"resume={resume}: no such checkpoint in {out}; there: {names}; or latest, none")
    if named[0] != found[-1]:
        raise ValueError(f"resume={resume}: {out} holds the newer {found[-1].name}; move it away first")
    return named[0]


def write_checkpoint(
    folder: Path,
    layout: Layout,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """All files of a checkpoint. weights, average: by parameter name; state: plain values and tensors."""
    with folder_written_whole(folder) as partial:
        files = {layout.file: weights} | ({} if average is None else {AVERAGE: average})
        for name, tensors in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            named = {layout.key(key): value.detach().cpu().contiguous() for key, value in tensors.items()}
            if len(named) != len(tensors):
                raise ValueError(f"{folder}: two weights have one key in {name}")
            save_file(named, partial / name, metadata={"format": "pt"})
        if layout.beside is not None:
            layout.beside(partial)
        torch.save(dict(state), partial / STATE)


def read_files(
    folder: Path, layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]:
    """(weights, state, average or None) on the CPU, as they are in the files. Only data is unpickled."""
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else None
        return load_file(folder / layout.file), state, average
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError):
        raise ValueError(f"{folder}: a damaged checkpoint; remove it to go on from the one before") from None


def read_checkpoint(
    folder: Path, layout: Layout, names: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]:
    """The same with weights by parameter name.

    Raises ValueError for a damaged checkpoint, and for one whose weights are not those called `names`.
    """
    stored, state, average = read_files(folder, layout)
    keys = {name: layout.key(name) for name in names}
    wrong = sorted(stored.keys() ^ set(keys.values()))
    if wrong:
        raise ValueError(
            f"{folder}: not a checkpoint of this configuration: {len(wrong)} weights differ, "
            f"such as {wrong[:3]}"
        )
    named = {name: stored[key] for name, key in keys.items()}
    return named, state, None if average is None else {name: average[key] for name, key in keys.items()}


class CsvLogger:
    """Rows of numbers in the order of their steps.

    columns: their names, `step` among them; those of a file that is there count, and without either the
    first row decides.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns = path, tuple(columns)
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = tuple(next(csv.reader(file), ())) or self.columns

    def rows(self) -> list[dict[str, str]]:
        """Whole rows of the file; one that was cut short by an interruption is left out."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"]]

    def truncate(self, step: int) -> None:
        """Keep the rows up to `step`; what came after is done again."""
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(row for row in self.rows() if int(row["step"]) <= step)
        if self.columns:
            write_atomic(self.path, text.getvalue().encode())

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; columns that it does not name stay empty."""
        if not self.path.exists():
            self.columns = self.columns or tuple(row)
            self.truncate(0)
        shown = {name: f"{row[name]:.7g}" if name in row else "" for name in self.columns}
        shown["step"] = str(int(row["step"]))
        with full_disk_named(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(shown)
