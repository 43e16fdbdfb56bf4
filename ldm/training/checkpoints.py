"""Checkpoints and the order of examples of an accelerate training run that may end at any moment.

out/checkpoint-250/<file of the layout>    trained weights as safetensors, in the caller's layout
                   average.safetensors     their running average, where one is kept
                   state.pt                optimizer, schedule, progress
A checkpoint folder appears whole or not at all.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.checkpoints import folder_written_whole

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


@dataclass(frozen=True)
class ResumableSampler:
    """Which examples form which batch, from (seed, epoch) alone.

    The batches of all processes together are consecutive parts of one permutation of the examples; process
    r takes the r-th part of each. So several processes see what one with a larger batch would see, in the
    same order. The last batch of an epoch is smaller; it is filled up from the start where processes need it.
    """

    examples: int
    batch: int  # per process
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def batches(self) -> int:
        """Per epoch and process."""
        return -(-self.examples // (self.batch * self.world))

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of this process, as lists of examples."""
        order = np.random.default_rng((self.seed, number)).permutation(self.examples)
        whole = self.batch * self.world
        found = []
        for start in range(0, self.examples, whole):
            part = order[start : start + whole]
            part = np.concatenate([part, np.resize(order, -len(part) % self.world)])
            found.append(np.array_split(part, self.world)[self.rank].tolist())
        return found
