"""Which paintings and regions are used, and which networks describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpainting.data.batches import ProcessSettings
from inpainting.prompts import COLORS
from ldm.settings.config import CheckedSettings, setting

RULES = ("max_concepts", "shuffle_concepts", "masked_area_threshold", "resolution")  # as in the manifest


@dataclass(frozen=True)
class RegionOptions(CheckedSettings):
    """Which regions are masked (published options of both datasets)."""

    data_dir: Path = setting(Path("data/mm_inp_dataset"), help="folder made by inpainting.data.ops")
    max_concepts: int | None = setting(5, low=1, high=len(COLORS), help="most regions of an image; none: all")
    shuffle_concepts: bool = setting(True, help="regions in random order, else the largest first")
    masked_area_threshold: float | None = setting(
        0.65, low=0, high=1, help="largest masked fraction; the first region is always kept"
    )


@dataclass(frozen=True)
class PaintingOptions(RegionOptions):
    """Which regions of which paintings the inpainter fills."""

    resolution: int = setting(512, low=16, help="side of the square crop in pixels")
    drop_caption_probability: float = setting(
        0.1, low=0, high=1, help="fraction of training images with one region that have no prompt"
    )

    @property
    def rules(self) -> dict[str, Any]:
        """What decides the choice of regions."""
        return {name: getattr(self, name) for name in RULES}


PRECISIONS = ("auto", "4bit", "full")


@dataclass(frozen=True)
class AnnotateSettings(ProcessSettings):
    """Images -> descriptions with boxes by Kosmos-2."""

    image_dir: Path = setting(help="folder of images, split or not")
    out: Path = setting(Path("data/annotations.json"), help="JSON file to write")
    model_id: str = setting("microsoft/kosmos-2-patch14-224", help="Kosmos-2, folder or hub name")
    batch_size: int = setting(8, low=1, help="images at once")
    max_new_tokens: int = setting(128, low=1, help="longest description")


@dataclass(frozen=True)
class CaptionSettings(ProcessSettings):
    """Object crops -> raw captions by LLaVA-NeXT."""

    entities_dir: Path = setting(help="folder of entities")
    model_id: str = setting(help="LLaVA-NeXT, folder or hub name")
    batch_size: int = setting(help="crops at once", low=1)
    max_new_tokens: int = setting(40, low=1, help="longest caption")
    output_dir: Path = setting(Path("."), help="folder of the journal, backup_P_final.json and llava.json")
    precision: str = setting("auto", choices=PRECISIONS, help="of the model's weights")
    resume: bool = setting(True, help="continue earlier work, also backups of the published command")
