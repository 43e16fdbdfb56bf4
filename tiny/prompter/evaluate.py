"""How often does the small prompt writer name what a mask hides, beside what is possible at all?

    python -m tiny.prompter.evaluate --model runs/tiny/prompter/model

multimask last  the answers of `multimask`, only the last region of each counts
prompter        the model, through the path that inference takes
another image the same masks painted over another scene: what it guesses without evidence
trained blind   a model that never saw an image
box alone       what the place and the sides of a mask give away, by the nearest masks of other scenes
Bayes-optimal   the best guess of a reader that recognises every visible solid
ceiling         what that guess reaches on average, exactly, given what is visible in these images
prior           any constant answer, exactly

The gap is the model's fraction of the way from the prior to the ceiling.
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class PrompterEvaluation(CheckedSettings):
    model: Path = setting(Path("runs/tiny/prompter/model"), help="folder of the prompt writer")
    blind: Path | None = setting(None, help="one that was trained blind, as a control")
    data: Path = setting(Path("data/scenes/prompter_eval"), help="folder of shards of held-out scenes")
    out: Path = setting(Path("benchmarks/results/prompter.json"), help="numbers; .txt and .png beside it")
    scenes: int = setting(768, low=2, help="scenes that are looked at")
    most: int = setting(5, low=1, help="most masks of one image")
    seed: int = setting(0, help="of the choice of masks")
    batch: int = setting(64, low=1, help="questions that go through the model together")


evaluate = command(PrompterEvaluation, "tiny.prompter.measures:evaluate_prompter")
build_app = single_app(evaluate, bare=False)

if __name__ == "__main__":
    run_module(build_app)
