"""What the training loop `ldm.training.fit` is given, the order of its examples, and how a run ended."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.seeds import seed_of
from ldm.training.checkpoints import Layout, trained
from ldm.training.settings import FitConfig

LossFunction = Callable[[nn.Module, Any, list[int]], Tensor]


@dataclass(frozen=True)
class Task:
    """What a model learns from which examples, and what is measured meanwhile.

    loss(model, batch, seeds): mean loss of a collated batch, ();  model: the one to call, which may be
        wrapped for several processes;  seeds: one per example, for its noise (`ldm.denoise.noise_for`)
    data: has a length and items; where it has `set_epoch(n)`, that is called before each epoch
    held_out: its mean loss is the validation loss, always with the same seeds
    measure(model): more numbers for validation.csv, called without gradients on every process
    rates(name): learning rate of a parameter; metrics.csv shows the first one
    """

    loss: LossFunction
    data: Dataset
    collate: Callable[[list], Any] = default_collate
    held_out: Dataset | None = None
    measure: Callable[[nn.Module], dict[str, float]] | None = None
    layout: Layout = Layout()
    rates: Callable[[str], float] | None = None

    def loader(self, data: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
        """Reads the examples of each batch, in up to `workers` processes."""
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=min(workers, len(batches)),
            generator=torch.Generator().manual_seed(0),  # the loader draws from it, no example does
        )

    def optimizer(self, config: FitConfig, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over weights by name, grouped by learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in weights.items():
            groups.setdefault(config.lr if self.rates is None else self.rates(name), []).append(value)
        return torch.optim.AdamW(
            [{"params": values, "lr": lr} for lr, values in groups.items()],
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def held_out_loss(self, model: nn.Module, config: FitConfig, accelerator: Accelerator) -> float:
        """Over all held-out examples, each process its part; the noise of an example is always the same."""
        data: Any = self.held_out
        mine = range(len(data))[accelerator.process_index :: accelerator.num_processes]
        batches = [list(mine[start : start + config.batch]) for start in range(0, len(mine), config.batch)]
        sums = torch.zeros(2, device=accelerator.device)
        loader = self.loader(data, batches, config.workers)
        for items, batch in zip(batches, loader, strict=True):
            seeds = [seed_of(config.seed, "held out", item) for item in items]
            with drawing(seeds[0], accelerator.device), accelerator.autocast():
                loss = self.loss(model, send_to_device(batch, accelerator.device), seeds)
            sums += torch.tensor([float(loss) * len(items), len(items)], device=sums.device)
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / max(count, 1)


def switch_to_training(model: nn.Module) -> None:
    """`model.train()`; frozen BatchNorm keeps its statistics, which would drift and are in no checkpoint."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not trained(module):
            module.eval()


def is_due(step: int, every: int) -> bool:
    """Whether something is done after `step`; every 0 = never."""
    return every > 0 and step % every == 0


@contextlib.contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draws without a generator, such as dropout, follow from `seed`; the state outside stays as it is."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class FitOutcome:
    """How a run ended. best: checkpoint with the lowest validation loss, where there is a validation set."""

    step: int
    stopped_early: bool
    newest: Path
    best: Path | None


def make_accelerator(config: FitConfig, out: Path) -> Accelerator:
    """The processes and the device of a run, for callers that place other models beside the trained one."""
    package = None if config.tracker == "none" else importlib.util.find_spec(config.tracker)
    # A folder of that name, which a tracker's runs may leave behind, has a spec too, but no origin.
    if config.tracker != "none" and (package is None or package.origin is None):
        raise ValueError(
            f"tracker={config.tracker} needs a package that is not installed: "
            f"pip install {config.tracker} (requirements-extras.txt)"
        )
    AcceleratorState._reset_state()  # a process may run one training after another
    cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and config.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU; on a CPU set precision to bf16 or no")
    tracker = None if config.tracker == "none" else config.tracker
    return Accelerator(mixed_precision=config.precision, cpu=cpu, log_with=tracker, project_dir=out)
