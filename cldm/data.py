"""Training data of the compositor for Lightning: one source or several, endless, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datasets.base import Consecutive, PairDataset, Source, collate
from datasets.inputs import PairOptions
from datasets.rendered import RenderedScenes
from ldm.config import check_settings, setting


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are loaded."""

    scenes: Path | None = setting(None, help="folder of scene shards (python -m datasets.scenes render)")
    batch: int = setting(16, low=1, help="examples per batch and device")
    workers: int = setting(8, low=0, help="loader processes; 0 loads in the training process")

    def __post_init__(self) -> None:
        check_settings(self)


def open_source(config: DataConfig) -> Source:
    """The source that the configuration names."""
    if config.scenes is None:
        raise ValueError(
            "data.scenes is not set: render scenes with `python -m datasets.scenes render --out FOLDER` "
            "and name the folder"
        )
    return RenderedScenes(config.scenes)


class PairData(pl.LightningDataModule):
    """Batches `batches` of a run; after an interruption it goes on where the trainer stands."""

    def __init__(self, config: DataConfig, options: PairOptions, seed: int, batches: int) -> None:
        super().__init__()
        self.config, self.options, self.seed, self.batches = config, options, seed, batches

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        done = trainer.global_step * trainer.accumulate_grad_batches if trainer is not None else 0
        dataset = PairDataset(open_source(self.config), self.options, self.seed)
        batch, workers = self.config.batch, self.config.workers
        return DataLoader(
            dataset,
            batch,
            sampler=Consecutive(done * batch, self.batches * batch),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
        )
