"""Train the small prompt writer on rendered scenes whose solids come in sets.

    python -m tiny.prompter.train configs/tiny/prompter.yaml

It starts with a trained vision tower (`vision_from`), learns to see painted masks, then what they hide.
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.cli import run_module, trainer
from ldm.settings.config import setting
from tiny.settings import MASK_COLORS, LlavaStage, LlavaTraining


@dataclass(frozen=True)
class PrompterTraining(LlavaTraining):
    """Everything that decides the trained prompt writer; `data` is written by tiny.prompter.scenes."""

    scenes: int = setting(8192, help="first scenes of `data` that are used", low=1)
    held_out: int = setting(256, help="the last of them, which only measure it", low=1)
    most: int = setting(5, help="most masks of one image", low=1, high=len(MASK_COLORS))
    vision_from: Path | None = setting(None, help="folder of a small LLaVA with the initial vision weights")
    writing: LlavaStage = setting(LlavaStage(), help="stage that writes what the masks hide")
    attention_loss_weight: float = setting(0.5, help="weight of the attention loss", low=0, was=("look",))
    vision_loss_weight: float = setting(0.5, help="weight of the vision loss in writing", low=0, was=("see",))
    alone: float = setting(0.5, help="fraction of images whose captions see no other one", low=0, high=1)


build_app = trainer(PrompterTraining, "tiny.prompter.training:train_prompter")

if __name__ == "__main__":
    run_module(build_app)
