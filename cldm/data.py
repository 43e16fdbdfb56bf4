"""Training data of the compositor for Lightning: one source or a weighted mixture, endless, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datasets.base import Drawn, PairDataset, RunBatches, Source, collate
from datasets.inputs import PairOptions
from datasets.rendered import RenderedScenes
from ldm.config import check_settings, setting


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are loaded."""

    scenes: Path | None = setting(None, help="folder of scene shards (python -m datasets.scenes render)")
    more: tuple[Path, ...] = setting((), help="further folders of scene shards, mixed with the first")
    weights: tuple[float, ...] = setting(
        (), low=0.0, help="share of scenes and of each folder of more, in any unit; none: equal"
    )
    true_depth: bool = setting(False, help="show the depth of the target itself, not the one of inference")
    batch: int = setting(16, low=1, help="examples per batch and device")
    workers: int = setting(8, low=0, help="loader processes; 0 loads in the training process")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.weights and len(self.weights) != 1 + len(self.more):
            raise ValueError(
                f"data.weights needs one number for scenes and one for each folder of more, "
                f"{1 + len(self.more)} in all, got {len(self.weights)}"
            )


def open_sources(config: DataConfig) -> list[Source]:
    """The sources that the configuration names."""
    if config.scenes is None:
        raise ValueError(
            "data.scenes is not set: render scenes with `python -m datasets.scenes render --out FOLDER` "
            "and name the folder"
        )
    folders = (config.scenes, *config.more)
    return [RenderedScenes(folder, true_depth=config.true_depth) for folder in folders]


def open_dataset(config: DataConfig, options: PairOptions, seed: int) -> PairDataset:
    """All examples of a run by their number."""
    sources = open_sources(config)
    return PairDataset(sources, options, seed, config.weights or (1.0,) * len(sources))


class RunLoader(DataLoader[Drawn]):
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

    @property
    def dataset(self) -> PairDataset:
        """Opened at first use."""
        if self._dataset is None:
            self._dataset = open_dataset(self.config, self.options, self.seed)
        return self._dataset

    def stands_at(self) -> int:
        """Batches that the trainer has done."""
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def train_dataloader(self) -> RunLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        workers = self.config.workers
        return RunLoader(
            self.dataset,
            batch_sampler=RunBatches(self.batches, self.config.batch, self.stands_at, rank, world),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
