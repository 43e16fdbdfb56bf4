"""Does each mask show what its own prompt names? Six models, as in the paper's table.

    python -m tiny.inpainter.evaluate --run runs/tiny/inpainter --data data/scenes/views_eval

Colour and shape are read by a classifier that was trained on renders of other seeds; what it makes of the
true renders is the ceiling. Painted images are stored, so an interrupted evaluation continues.
"""

from dataclasses import dataclass
from pathlib import Path

from inpainting.models.text_to_image.config import PaintOptions
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import CheckedSettings, setting
from tiny.inpainter.train import ADAPTERS
from tiny.settings import PROMPTS

# name -> (LoRA folder of the run, how prompts reach their masks); see tiny.inpainter.train
MODELS: dict[str, tuple[str, PaintOptions]] = {
    "plain": ("", ADAPTERS["plain"]),
    "rca_joint": ("", ADAPTERS["joint"]),
    "rca": ("", ADAPTERS["rca"]),
    "finetuned": ("plain/lora", ADAPTERS["plain"]),
    "rca_finetuned": ("rca/lora", ADAPTERS["rca"]),
    "joint_finetuned": ("joint/lora", ADAPTERS["joint"]),
}


@dataclass(frozen=True)
class EvaluationSampling(CheckedSettings):
    steps: int = setting(8, low=1, help="denoising steps")
    guidance: float = setting(2.0, low=1.0, help="classifier-free guidance")
    batch: int = setting(16, low=1, help="images painted together; the result does not depend on it")


@dataclass(frozen=True)
class InpainterEvaluation(CheckedSettings):
    run: Path = setting(Path("runs/tiny/inpainter"), help="folder of the training run")
    data: Path = setting(Path("data/scenes/views_eval"), help="folder of shards of held-out scenes")
    out: Path = setting(Path("benchmarks/results"), help="folder of inpainter.json, .txt and .png")
    scenes: int = setting(512, low=1, help="scenes; those with too few solids are left out")
    masks: tuple[int, int] = setting((2, 5), low=1, help="least,most masks of one image")
    prompts: tuple[str, ...] = setting(PROMPTS, choices=PROMPTS, help="which prompts", was=("asked",))
    models: tuple[str, ...] = setting(tuple(MODELS), choices=tuple(MODELS), help="which models")
    seed: int = setting(0, help="of the choice of masks, prompts and noise")
    sampling: EvaluationSampling = setting(EvaluationSampling(), help="how images are painted")


evaluate = command(InpainterEvaluation, "tiny.inpainter.measures:evaluate_inpainter")
build_app = single_app(evaluate, bare=False)

if __name__ == "__main__":
    run_module(build_app)
