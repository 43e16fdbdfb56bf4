"""Training data of the compositor for Lightning: one source or a weighted mixture, endless, resumable."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from cldm.training.settings import DataConfig
from datasets.examples import PairDataset, RunBatches, TrainingSample, collate_pairs
from datasets.inputs import PairOptions


class RunLoader(DataLoader[TrainingSample]):
    """Its place follows from the trainer's step (see RunBatches), so it has no state of its own to keep."""

    def state_dict(self) -> dict[str, int]:
        return {"batches": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


class PairData(pl.LightningDataModule):
    """All `batches` of a run; after an interruption it goes on where the trainer stands."""

    def __init__(self, config: DataConfig, options: PairOptions, seed: int, batches: int) -> None:
        super().__init__()
        self.config, self.options, self.seed, self.batches = config, options, seed, batches
        self._dataset: PairDataset | None = None
        self.names: tuple[str, ...] = ()  # of the sources, once they are open

    @property
    def dataset(self) -> PairDataset:
        """All examples of the run by their number; opened at first use."""
        if self._dataset is None:
            sources, weights = self.config.open_sources()
            self.names = tuple(sources)
            self._dataset = PairDataset(list(sources.values()), self.options, self.seed, weights)
        return self._dataset

    @staticmethod
    def collate(drawn: Sequence[TrainingSample]) -> dict[str, Any]:
        """The stacked tensors, and `rejected`: (source, reason) of every sample rejected on the way."""
        rejected = [(int(sample.source), reason) for sample in drawn for reason in sample.rejected]
        return {**collate_pairs(drawn), "rejected": rejected}

    def stands_at(self) -> int:
        """Batches that the trainer has done."""
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def train_dataloader(self) -> RunLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        workers = self.config.workers
        return RunLoader(
            self.dataset,
            batch_sampler=RunBatches(self.batches, self.config.batch, self.stands_at, rank, world),
            collate_fn=self.collate, num_workers=workers, persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader draws from it, no example does
        )  # fmt: skip
