"""Which locator reads a sentence, and what it is told: the settings of every command that takes one."""

from dataclasses import dataclass, fields
from pathlib import Path

from ldm.files import located
from ldm.registry.models import resolve_model_path
from ldm.settings.config import CheckedSettings, setting

FULL, TINY = Path("models/locator"), Path("assets/tiny/locator")
GEOMETRIC = "geometric"  # the locator that is no folder


@dataclass(frozen=True, kw_only=True)
class LocatorOptions(CheckedSettings):
    """A locator, the known places and the number of proposals."""

    locator: str | None = setting(
        None,
        help="what reads the sentence: a locator folder, or geometric (rules and --anchors or --detector); "
        f"without it {FULL.as_posix()} if it is there, else geometric if --anchors or --detector is "
        f"given, else {TINY.as_posix()}, which knows rendered objects only",
    )
    anchors: Path | None = setting(
        None, help="JSON of objects in the background, as llava_bifrost.predict anchors writes it"
    )
    detector: Path | None = setting(
        None, help="folder of a GroundingDINO, OWL-ViT or OWLv2 that finds the objects the sentence names"
    )
    candidates: int = setting(1, low=1, high=64, help="places that the locator proposes; the best is used")
    relative_size: float | None = setting(
        None,
        low=0.02,
        high=50,
        help="geometric locator: size of the object relative to the first object named, at equal distance; "
        "without it from neighbours and a table of nouns",
    )

    @property
    def locator_name(self) -> str:
        """The locator to use: a folder's name, or GEOMETRIC."""
        full = resolve_model_path(FULL)
        if self.locator is not None:
            return self.locator
        if (full / "config.json").is_file():
            return full.as_posix()
        return located(TINY).as_posix() if self.anchors is None and self.detector is None else GEOMETRIC


WITH_SENTENCE = {field.name: field.default for field in fields(LocatorOptions)}  # they need an instruction
