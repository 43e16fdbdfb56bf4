"""A training run around its loop: what `ldm.training.fit` is given, its checkpoints and its table of numbers.

out/checkpoint-250/<file of the layout>    trained weights as safetensors, in the caller's layout
                   average.safetensors     their running average, where one is kept
                   state.pt                optimizer, schedule, progress
A checkpoint folder appears whole or not at all; a run may end at any moment.
"""

import csv
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, broadcast_object_list, send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.checkpoints import drawing, folder_written_whole, in_precision, loading
from ldm.files import full_disk_named, read_text, write_atomic
from ldm.seeds import seed_of
from ldm.training.settings import FitConfig
from ldm.training.signals import shield_loader

STATE, AVERAGE = "state.pt", "average.safetensors"
CHECKPOINT_PREFIX = "checkpoint-"
Checkpoint = tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]


@dataclass(frozen=True)
class Layout:
    """How the trained weights lie in a checkpoint folder."""

    file: str = "weights.safetensors"  # path inside the folder
    key: Callable[[str], str] = str  # parameter name -> key in the file, one to one
    beside: Callable[[Path], None] = lambda folder: None  # writes what else belongs there


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def numbered_folders(out: Path) -> list[Path]:
    """What is named like a checkpoint, oldest first; half-written ones are named otherwise."""
    steps = [path.name.removeprefix(CHECKPOINT_PREFIX) for path in out.glob(f"{CHECKPOINT_PREFIX}*")]
    return [out / f"{CHECKPOINT_PREFIX}{step}" for step in sorted(filter(str.isdecimal, steps), key=int)]


def checkpoint_folders(out: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    return [path for path in numbered_folders(out) if (path / STATE).is_file()]


def refuse_foreign(out: Path, results: Sequence[str], advice: str) -> None:
    """ValueError where a run in `out` would overwrite weights, such as its `results`, not trained there."""
    own = checkpoint_folders(out)
    foreign = [path for path in numbered_folders(out) if path not in own and any(path.iterdir())]
    foreign += [out / name for name in results if not own and (out / name).exists()]
    if foreign:
        wrong = "was not trained here: this run cannot go on from it, and would overwrite it"
        raise ValueError(f"{foreign[0]} {wrong}; choose another {advice}")


def named_checkpoint(out: Path, name: str, file: str, advice: str = "") -> Path:
    """A checkpoint that holds `file`, or ValueError. name: best (validation loss), latest or a folder's."""
    there = [path for path in numbered_folders(out) if (path / file).exists()]
    wanted = name
    if name == "best":
        trained = [path for path in there if (path / STATE).is_file()]
        state = torch.load(trained[-1] / STATE, "cpu", weights_only=True) if trained else {}
        if not (step := state.get("progress", {}).get("best_step", 0)):
            raise ValueError(f"checkpoint=best: no training in {out} has measured a validation loss")
        wanted = f"{CHECKPOINT_PREFIX}{step}"
    found = there[-1:] if name == "latest" else [path for path in there if path.name == wanted]
    if not found:
        names = ", ".join(path.name for path in there) or "none"
        raise ValueError(f"checkpoint={name}: {out} holds no such checkpoint (there: {names}){advice}")
    return found[0]


def agreed_checkpoint(accelerator: Accelerator, out: Path) -> Path | None:
    """The newest one of the first process, where a run goes on; ValueError on all where one lacks it."""
    found = checkpoint_folders(out) if accelerator.is_main_process else []
    (newest,) = broadcast_object_list([found[-1] if found else None])
    seen = torch.tensor(float(newest is None or (newest / STATE).is_file()), device=accelerator.device)
    if missing := accelerator.num_processes - round(float(accelerator.reduce(seen))):
        wrong = f"{missing} of {accelerator.num_processes} processes do not see {newest}"
        raise ValueError(f"{wrong}: the run folder must lie on a disk that all machines share")
    return newest


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
        layout.beside(partial)
        torch.save(dict(state), partial / STATE)


def read_files(folder: Path, layout: Layout) -> Checkpoint:
    """(weights, state, average or None) on the CPU, as they are in the files. Only data is unpickled."""
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else None
        return load_file(folder / layout.file), state, average
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError):
        raise ValueError(f"{folder}: a damaged checkpoint; remove it to go on from the one before") from None


def read_checkpoint(folder: Path, layout: Layout, names: Iterable[str]) -> Checkpoint:
    """The same with weights by parameter name; ValueError where they are not those called `names`."""
    stored, state, average = read_files(folder, layout)
    keys = {name: layout.key(name) for name in names}
    if wrong := sorted(stored.keys() ^ set(keys.values())):
        differ = f"{len(wrong)} weights differ, such as {wrong[:3]}"
        raise ValueError(f"{folder}: not a checkpoint of this configuration: {differ}")
    named = {name: stored[key] for name, key in keys.items()}
    return named, state, None if average is None else {name: average[key] for name, key in keys.items()}


class CsvLogger:
    """Rows of numbers in the order of their steps; columns: those of a file that is there come first."""

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


@dataclass(frozen=True)
class Task:
    """What a model learns from which examples, and what is measured meanwhile.

    loss(model, batch, seeds): mean loss of a collated batch, ();  model: the one to call, which may be
        wrapped for several processes;  seeds: one per example, for its noise (`ldm.denoise.noise_for`)
    """

    loss: Callable[[nn.Module, Any, list[int]], Tensor]
    data: Dataset  # has a length; where it has `set_epoch(n)`, that is called before each epoch
    collate: Callable[[list], Any] = default_collate
    held_out: Dataset | None = None  # its mean loss is the validation loss, always with the same seeds
    measure: Callable[[nn.Module], dict[str, float]] | None = None  # more of it, run on every process
    layout: Layout = Layout()
    rates: Callable[[str], float] | None = None  # learning rate by name; metrics.csv shows the first one

    def loader(self, data: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
        return DataLoader(
            data, batch_sampler=batches, collate_fn=self.collate, num_workers=min(workers, len(batches)),
            generator=torch.Generator().manual_seed(0),  # the loader draws from it, no example does
            worker_init_fn=shield_loader)  # fmt: skip

    def optimizer(self, config: FitConfig, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over weights by name, grouped by learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in weights.items():
            groups.setdefault(config.lr if self.rates is None else self.rates(name), []).append(value)
        return torch.optim.AdamW(
            [{"params": values, "lr": lr} for lr, values in groups.items()], betas=config.betas,
            eps=config.eps, weight_decay=config.weight_decay)  # fmt: skip

    def held_out_loss(self, model: nn.Module, config: FitConfig, accelerator: Accelerator) -> float:
        """Over all held-out examples, each process its part; the noise of an example is always the same."""
        data: Any = self.held_out
        mine = range(len(data))[accelerator.process_index :: accelerator.num_processes]
        batches = [list(mine[start : start + config.batch]) for start in range(0, len(mine), config.batch)]
        sums = torch.zeros(2, device=accelerator.device)
        for items, batch in zip(batches, self.loader(data, batches, config.workers), strict=True):
            seeds = [seed_of(config.seed, "held out", item) for item in items]
            with drawing(seeds[0], accelerator.device), accelerator.autocast():
                loss = self.loss(model, send_to_device(batch, accelerator.device), seeds)
            sums += torch.tensor([float(loss) * len(items), len(items)], device=sums.device)
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / max(count, 1)


def tracker_id(out: Path) -> str:
    """The id under which a tracker goes on with this run, also in a moved folder."""
    file = out / "tracker_id.txt"
    if not file.is_file():
        write_atomic(file, uuid4().hex[:8].encode())
    return read_text(file).strip()


def make_accelerator(config: FitConfig, out: Path) -> Accelerator:
    """The processes and the device of a run, for callers that place other models beside the trained one."""
    tracker = None if config.tracker == "none" else config.tracker
    package = importlib.util.find_spec(tracker) if tracker else None
    # A folder of that name, which a tracker's runs may leave behind, has a spec too, but no origin.
    if tracker and (package is None or package.origin is None):
        advice = f"pip install {tracker} (requirements-extras.txt)"
        raise ValueError(f"tracker={tracker} needs a package that is not installed: {advice}")
    cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and config.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU; on a CPU set precision to bf16 or no")
    with loading():
        if AcceleratorState._shared_state.get("_mixed_precision") != config.precision:
            with in_precision(config.precision):  # a process may run one training after another
                AcceleratorState._reset_state()
        alone = [AutocastKwargs(cache_enabled=False)]  # torch's cache is that of all threads
        return Accelerator(
            mixed_precision=config.precision,
            cpu=cpu,
            log_with=tracker,
            project_dir=out,
            kwargs_handlers=alone,
        )
