"""What conversion is given."""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.choices import FLOAT_TYPES
from ldm.settings.config import CheckedSettings, check_settings, setting


@dataclass(frozen=True)
class ConvertSettings(CheckedSettings):
    """One checkpoint in, one folder out."""

    source: Path = setting(help="checkpoint: .ckpt, .pth, .pt, .bin, .safetensors, or a folder of these")
    out: Path = setting(help="folder that is written; it appears when it is complete")
    dtype: str = setting(
        "keep", choices=("keep", *FLOAT_TYPES), help="type of the written weights; keep: as in the file"
    )
    report: Path | None = setting(None, help="JSON report: what became of every key")


@dataclass(frozen=True)
class CompositorSettings(ConvertSettings):
    """The same for a whole compositor."""

    dinov2: Path | None = setting(
        None, help="DINOv2 weights (original file or transformers folder), for a checkpoint without them"
    )
    seed: int = setting(0, help="seed of the parts that start fresh")


OUTPUTS = (".safetensors", ".ckpt", ".pth", ".pt")


@dataclass(frozen=True)
class ExportSettings:
    """One folder in, one file out."""

    source: Path = setting(help="compositor, DINOv2 or DPT folder")
    out: Path = setting(help=".safetensors (written tensor by tensor), or .ckpt, .pth, .pt")
    layout: str = setting(
        "bifrost", choices=("bifrost", "anydoor"), help="of a compositor; anydoor leaves the depth branch out"
    )
    positions: Path | None = setting(
        None, help="where DINOv2's full position embedding is, if not in the folder: original file or folder"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.out.suffix not in OUTPUTS:
            raise ValueError(f"out must end in one of {', '.join(OUTPUTS)}, got {self.out.name}")
