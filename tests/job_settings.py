"""A small settings dataclass with every kind of field, for the tests of settings and options."""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.config import check_settings, setting


@dataclass(frozen=True)
class Optim:
    rate: float = setting(1e-4, low=0, help="learning rate")
    betas: tuple[float, float] = setting((0.9, 0.999), low=0, high=1)
    warm: bool = False


@dataclass(frozen=True)
class Job:
    image: Path = setting(help="image to edit")
    mode: str = setting("place", choices=("place", "replace", "id-transfer"), help="what to do")
    size: tuple[int, int] = setting((64, 64), low=8, help="(h, w)")
    box: tuple[float, float, float, float] | None = setting(None, low=0, high=1, help="x1,y1,x2,y2")
    strength: float = setting(0.5, low=0, high=1, help="share of the steps that run")
    prompt: str = setting("", help="text")
    names: tuple[str, ...] = setting((), aliases=("--word",))
    seeds: list[int] = setting([0])
    weights: dict[str, float] = setting({"detail": 1.0}, low=0)
    optim: Optim = setting(Optim())
    teacher: Optim | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mode == "replace" and self.box is None:
            raise ValueError("mode replace needs a box")


def write(folder: Path, **files: str) -> Path:
    """Write NAME.yaml for every NAME=text; returns the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"
