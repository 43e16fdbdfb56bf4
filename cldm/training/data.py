"""Training data of the compositor for Lightning: one source or a weighted mixture, endless, resumable."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datasets.base import ExampleSource, PairDataset, RunBatches, TrainingSample, collate_pairs
from datasets.inputs import PairOptions
from datasets.sources.registry import DatasetsConfig, drawn_sources, open_mixture
from datasets.sources.rendered import RenderedScenes
from ldm.settings.config import check_settings, load_config, setting


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are loaded."""

    datasets: Path | None = setting(
        None, help="YAML file of real sources and their weights, such as configs/datasets.yaml"
    )
    scenes: Path | None = setting(None, help="folder of scene shards, instead of datasets")
    more: tuple[Path, ...] = setting((), help="further folders of scene shards, mixed with the first")
    weights: tuple[float, ...] = setting(
        (), low=0.0, help="relative weight of scenes and of each folder of more; none: equal"
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
        if self.datasets is not None and self.scenes is not None:
            raise ValueError(
                f"data.datasets={self.datasets} and data.scenes={self.scenes}: only one of them; rendered "
                "scenes are also a source of a datasets file (section scenes)"
            )

    def open_sources(self) -> tuple[dict[str, ExampleSource], list[float]]:
        """The sources that the configuration names, and their weights."""
        if self.datasets is not None:
            settings = load_config(DatasetsConfig, self.datasets)
            try:
                sources, weights = open_mixture(settings)
            except ValueError as error:
                raise ValueError(f"data.datasets={self.datasets}: {error}") from error
            return dict(zip(drawn_sources(settings), sources, strict=True)), weights
        if self.scenes is None:
            raise ValueError(
                "neither data.datasets nor data.scenes is set: name a file such as configs/datasets.yaml, "
                "or render scenes with `python -m datasets.scenes render --out FOLDER` and name the folder"
            )
        folders = (self.scenes, *self.more)
        rendered: dict[str, ExampleSource] = {
            str(folder): RenderedScenes(folder, true_depth=self.true_depth) for folder in folders
        }
        return rendered, list(self.weights) or [1.0] * len(folders)


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
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
