"""Training on several machines: all processes go on from what the first one chooses, or none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.training.run import agreed_checkpoint


class Processes:
    """Stands for accelerate: this process is one of two; the other sees, or does not."""

    device, num_processes = torch.device("cpu"), 2

    def __init__(self, first: bool, other_sees: bool) -> None:
        self.is_main_process, self.other_sees = first, other_sees

    def reduce(self, seen: torch.Tensor) -> torch.Tensor:
        return seen + float(self.other_sees)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_all_processes_go_on_from_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, here: bool, there: bool
):
    """What the first process chooses is broadcast; a process without it ends the run on all of them."""
    folder, of_first = tmp_path / "here", tmp_path / "here" if first else tmp_path / "first"
    for out in {folder if here else of_first, of_first}:
        (out / "checkpoint-3").mkdir(parents=True)
        (out / "checkpoint-3" / "state.pt").write_bytes(b"")
    chosen = of_first / "checkpoint-3"
    if not first and not here:
        (chosen / "state.pt").unlink()  # on the disk of the other machine
    monkeypatch.setattr(
        "ldm.training.run.broadcast_object_list", lambda answer: answer if first else [chosen]
    )
    processes: Any = Processes(first, there)
    if there and (here or first):
        assert agreed_checkpoint(processes, folder) == chosen
    else:
        with pytest.raises(
            ValueError, match=r"of 2 processes do not see .*checkpoint-3: the run folder must lie on"
        ):
            agreed_checkpoint(processes, folder)
