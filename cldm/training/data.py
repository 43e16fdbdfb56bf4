"""The batches of a run, and its held-out examples, as a Lightning data module."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from cldm.training.settings import DataConfig, RunConfig
from datasets.base import ExampleSource
from datasets.examples import PairDataset, RunBatches, TrainingSample, collate_pairs
from datasets.sources.image_source import ImageSource
from ldm.settings.schema import flat, to_plain
from ldm.training.signals import shield_loader


class RunLoader(DataLoader[TrainingSample]):
    """Its place follows from the trainer's step (see RunBatches), so it has no state of its own to keep."""

    def state_dict(self) -> dict[str, int]:
        return {"batches": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


class PairData(pl.LightningDataModule):
    """All `batches` of a run; after an interruption it goes on where the trainer stands."""

    def __init__(self, run: RunConfig, batches: int) -> None:
        super().__init__()
        self.config, self.options, self.seed, self.batches = run.data, run.pair, run.seed, batches
        self.validation = run.validation

    @cached_property
    def opened(self) -> tuple[Mapping[str, ExampleSource], list[float]]:
        """Sources by name, and their weights."""
        return self.config.open_sources()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources, in the order of the settings."""
        return tuple(self.opened[0])

    @cached_property
    def dataset(self) -> PairDataset:
        """All examples of the run by their number; opened at first use."""
        sources, weights = self.opened
        return PairDataset(list(sources.values()), self.options, self.seed, weights, self.config.stop_after)

    @cached_property
    def held_out(self) -> PairDataset | None:
        """The examples of the validation; ValueError where one of their items is trained on too."""
        if not self.validation.measured:
            return None
        held = DataConfig(self.validation.datasets, self.validation.scenes)
        sources, weights = held.open_sources("validation")
        self.held_out_names = tuple(sources)
        trained, others = (set().union(*map(item_names, one.items())) for one in (self.opened[0], sources))
        if shared := sorted(trained & others):
            named = f"validation.{'datasets' if held.datasets else 'scenes'} shares {len(shared)} items"
            wrong = f"{named} with the training data, such as {shared[0][1]} of {shared[0][0]}; give each a"
            raise ValueError(f"{wrong} list of its own (indexes of the datasets file) or other files")
        return PairDataset(list(sources.values()), self.options, self.seed, weights)

    @staticmethod
    def collate(drawn: Sequence[TrainingSample]) -> dict[str, Any]:
        """The stacked tensors, and `origins`: `planned`, `source` and `rejected` of every sample."""
        return {**collate_pairs(drawn), "origins": [(one.planned, one.source, one.rejected) for one in drawn]}

    def stands_at(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def train_dataloader(self) -> RunLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        workers = self.config.workers
        if workers:
            cv2.setNumThreads(1)
        return RunLoader(
            self.dataset,
            batch_sampler=RunBatches(self.batches, self.config.batch, self.stands_at, rank, world),
            collate_fn=self.collate, num_workers=workers, persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader draws from it, no example does
            worker_init_fn=start_worker, pin_memory=torch.cuda.is_available())  # fmt: skip


def start_worker(worker: int) -> None:
    """OpenCV takes every core in each worker otherwise, as torch does not.

    The process that forks them has one thread already: to end those of its parent, a fork waits for ever.
    """
    shield_loader(worker)
    if cv2.getNumThreads() > 1:  # started anew
        cv2.setNumThreads(1)


def item_names(named: tuple[str, ExampleSource]) -> set[tuple[str, str]]:
    """(folder of the images, name) of every item of a source, by which items of two mixtures are compared."""
    name, source = named
    if not isinstance(source, ImageSource):
        return {(name, str(k)) for k in range(len(source))}
    paths = flat(to_plain(source.config)).items()
    root = next(str(value) for key, value in paths if value and key.endswith(("images", "root", "objects")))
    return {(root, source.name(k)) for k in range(len(source))}
