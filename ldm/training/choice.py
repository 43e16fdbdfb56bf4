"""Which checkpoint of a run folder is meant, and what in it no training here has written."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.training.run import CHECKPOINT_PREFIX, STATE, checkpoint_folders, numbered_folders


def refuse_foreign(out: Path, results: Sequence[str], advice: str) -> None:
    """ValueError where a run in `out` would overwrite weights that no training has written there.

    results: names in `out` of what a run writes at its end. advice: follows the name of what was found
    """
    own = checkpoint_folders(out)
    foreign = [path for path in numbered_folders(out) if path not in own and any(path.iterdir())]
    foreign += [out / name for name in results if not own and (out / name).exists()]
    if foreign:
        wrong = "was not trained here: this run cannot go on from it, and would overwrite it"
        raise ValueError(f"{foreign[0]} {wrong}; choose another {advice}")


def named_checkpoint(out: Path, name: str, file: str, advice: str = "") -> Path:
    """A checkpoint folder of a run. file: what it must hold.

    name: best (lowest validation loss), latest, or that of the folder. ValueError lists those that are there.
    """
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
