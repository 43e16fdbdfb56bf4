"""How many samples each source of a training run gave, and why the others were refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from datasets.sources.inspection import RejectionStats
from ldm.files import write_atomic

if TYPE_CHECKING:
    from cldm.training.data import PairData

log = logging.getLogger(__name__)


class RejectionCounter(pl.Callback):
    """Counts while a run trains; at its end, also an early one, a table is logged and `path` written.

    Of several devices the first one counts its own share of the examples.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accepted: Counter[int] = Counter()
        self.refused: dict[int, Counter[str]] = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        self.accepted.update(batch["source"].tolist())
        for source, reason in batch["refused"]:
            self.refused.setdefault(source, Counter())[reason] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"accepted": dict(self.accepted), "refused": {k: dict(one) for k, one in self.refused.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accepted = Counter(state_dict["accepted"])
        self.refused = {k: Counter(one) for k, one in state_dict["refused"].items()}

    def tallies(self, names: tuple[str, ...]) -> list[RejectionStats]:
        """One for each source, in the order of the settings."""
        return [
            RejectionStats(name, self.accepted[k], self.refused.get(k, Counter()))
            for k, name in enumerate(names)
        ]

    def tell(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or not self.accepted:
            return
        data: PairData = trainer.datamodule  # type: ignore[attr-defined]
        tallies = self.tallies(data.names)
        body = {one.source: {"accepted": one.accepted, "refused": dict(one.refused)} for one in tallies}
        write_atomic(self.path, (json.dumps(body, indent=1) + "\n").encode())
        for one in tallies:
            log.info(one.table())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.tell(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.tell(trainer)
