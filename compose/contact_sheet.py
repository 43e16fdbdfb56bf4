"""Contact sheets of composites: inputs, box, fused depth, visible mask, model output and result side by side.

python -m compose.contact_sheet outputs/a.png outputs/b.png --out sheet.png     (from the recipes inside)
python -m compose.contact_sheet --cases cases.json --root DATA --out sheet.png  (a list of cases)
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.result import overwrite_setting
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True, kw_only=True)
class ContactSheetSettings(CheckedSettings):
    out: Path = setting(help="PNG to write")
    images: tuple[Path, ...] = setting(
        (), aliases=("[IMAGE]...",), help="images written by run_inference.py image"
    )
    cases: Path | None = setting(None, help="JSON list of cases, instead of images")
    root: Path = setting(Path("."), help="folder that the paths in the case list start from")
    model: Path | None = setting(None, help="compositor folder for the cases")
    depth_model: Path | None = setting(None, help="depth network folder for the cases")
    overwrite: bool = overwrite_setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out must name a .png file, got {self.out}")
        if bool(self.images) == (self.cases is not None):
            raise ValueError("give either images made by run_inference.py, or --cases FILE")


build_app = single_app(command(ContactSheetSettings, "compose.sheet:make_sheet"))

if __name__ == "__main__":
    run_module(build_app)
