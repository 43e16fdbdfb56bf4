"""What is measured of a compositor."""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class EvaluateSettings(CheckedSettings):
    """What is measured and where the numbers go."""

    model: Path = setting(Path("assets/tiny/compositor"), help="compositor folder")
    scenes: int = setting(300, low=2, help="scenes to measure")
    data: Path = setting(Path("data/scenes/eval"), help="folder of scene shards of the eval split")
    depth_model: Path = setting(
        Path("assets/tiny/depth"), help="depth network for backgrounds and for the order in results"
    )
    given_depth: bool = setting(
        False, help="give the scene's true background depth and object range instead of what users have"
    )
    strengths: tuple[float, ...] = setting((0.2, 0.4, 0.6, 1.0), help="strengths of init paste")
    details: tuple[float, ...] = setting((0.0, 1.0), help="fractions of the relit cut-out in the result")
    steps: int = setting(20, low=1, help="sampling steps of a full run of init paste")
    noise_steps: tuple[int, ...] = setting((1, 4, 20), help="sampling steps of the start from noise")
    guidance: tuple[float, ...] = setting((1.0,), help="classifier-free guidance")
    ablations: int = setting(100, low=0, help="scenes of the ablations; 0 = none")
    identity: bool = setting(True, help="also measure identity among eight rendered candidates")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers; table and sheets go beside it")
