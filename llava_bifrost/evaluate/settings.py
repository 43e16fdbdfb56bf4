"""What is measured of a locator."""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class LocatorEvaluation(CheckedSettings):
    """What is measured and where the numbers go."""

    model: Path = setting(Path("assets/tiny/locator"), help="folder of the locator")
    out: Path = setting(Path("outputs/locator.json"), help="numbers; .txt and .png are written beside it")
    dataset: Path | None = setting(None, help="dataset file of build_dataset; without it rendered scenes")
    scenes: int = setting(1024, help="held-out scenes, or records of the dataset", low=1)
    first_scene: int = setting(0, help="number of the first held-out scene", low=0)
    data: Path = setting(
        Path("data/scenes/views_eval"), help="folder of held-out scenes; rendered if missing"
    )
    blind: Path | None = setting(None, help="folder of a locator that was trained without images")
    candidates: int = setting(0, help="also measure re-ranking and best of this many; 0: not", low=0)
    ranked: int = setting(128, help="scenes on which that is done", low=1)
    batch: int = setting(64, help="questions answered together", low=1)
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    seed: int = setting(0, help="of the questions and controls", low=0)
