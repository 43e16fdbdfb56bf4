"""The settings of many composites: a file of jobs, and the DreamBooth test set."""

from dataclasses import dataclass
from pathlib import Path

from compose.settings import DEFAULTS, SHEET_HELP
from ldm.result import overwrite_setting
from ldm.settings.choices import Divided
from ldm.settings.config import setting


@dataclass(frozen=True, kw_only=True)
class DreamBoothSettings(Divided):
    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with --object-masks")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME_N.jpg with NAME_N_mask.jpg")
    object_masks: Path | None = setting(
        None, help="masks CONCEPT.jpg of the objects; then masks of backgrounds are black where to paint"
    )
    out: Path = setting(Path("outputs/dreambooth"), help="folder of the results, CONCEPT/N.png each")
    mode: str = setting(
        "replace", choices=("replace", "place", "inpaint", "id-transfer"), help="as in the image verb"
    )
    model: Path | None = setting(None, help="compositor folder, as in the image verb")
    depth_model: Path | None = setting(None, help="depth network folder, as in the image verb")
    seed: int = setting(0, low=0, help="every pair has a seed of its own, made of this and its name")
    config: Path | None = setting(
        DEFAULTS, was=("defaults",), help="YAML file of all other settings; none: the built-in ones"
    )
    overwrite: bool = overwrite_setting()
    sheet: bool = setting(False, help=SHEET_HELP)


@dataclass(frozen=True)
class BatchSettings(Divided):
    jobs: Path = setting(
        aliases=("JOBS",), help="JSONL: one job a line, the setting names of the image verb and a name"
    )
    out: Path = setting(Path("outputs/batch"), help="folder of the results, NAME.png and NAME.json each")
    config: Path | None = setting(
        DEFAULTS, was=("defaults",), help="YAML file of settings below those of the jobs; none: built-in ones"
    )
    root: Path = setting(Path("."), help="folder that relative paths in the jobs start from")
    overwrite: bool = overwrite_setting()
    sheet: bool = setting(False, help=SHEET_HELP)
