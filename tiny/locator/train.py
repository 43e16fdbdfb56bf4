"""Train the small locator from nothing on rendered scenes.

    python -m tiny.locator.train configs/tiny/locator.yaml

vision     the vision tower and the projector learn to see, before any language
matching   the language model learns to find a named solid
placement  it learns to place a new one
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.cli import run_module, trainer
from ldm.settings.config import setting
from tiny.settings import LlavaStage, LlavaTraining


@dataclass(frozen=True)
class LocatorTraining(LlavaTraining):
    pretrained: Path | None = setting(None, help="small locator to start from; none: fresh weights")
    held_out: int = setting(512, help="last scenes of `data`, which only measure it", low=1)
    matching: LlavaStage = setting(LlavaStage(), help="stage that finds a named solid")
    placement: LlavaStage = setting(LlavaStage(), help="stage that places a new solid")
    attention_loss_weight: tuple[float, float] = setting((1.0, 0.3), low=0, was=("look",),
        help="weight of the attention loss in matching and placement")  # fmt: skip
    vision_loss_weight: float = setting(0.25, low=0, was=("see",),
        help="weight of the vision loss in matching and placement")  # fmt: skip
    questions: tuple[int, int] = setting((4, 2), help="placing,replacing questions per image", low=0)
    asked: int = setting(0, help="first scenes of `data` that train with questions; 0: all", low=0)
    proposals: int = setting(0, low=0,
        help="places per question, of which the safest answers it; 0: the place drawn with it")  # fmt: skip
    cache: Path | None = setting(None, help="folder of arrays made of `data`; default: `cache` in out")


build_app = trainer(LocatorTraining, "tiny.locator.training:train_small_locator")

if __name__ == "__main__":
    run_module(build_app)
