"""Measure predicted prompts, and set runs beside the paper's table (docs/prompts.md)."""

from dataclasses import dataclass
from pathlib import Path

from inpainting.models.image_to_text.settings import MetricFolders
from ldm.result import overwrite_setting
from ldm.settings.choices import BOOTSTRAPS
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import setting


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(MetricFolders):
    predictions: tuple[Path, ...] = setting(aliases=("PREDICTIONS",), help="predictions.jsonl of each run")
    out: Path = setting(Path("outputs/prompt_metrics.json"), help="JSON of all numbers; several runs by file")
    table: Path | None = setting(None, help="Markdown file of the table that is printed")
    overwrite: bool = overwrite_setting()
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    resamples: int = setting(BOOTSTRAPS, low=0, help="of the 95 % intervals; 0 for none")
    seed: int = setting(0, low=0, help="of the resamples")


WORK = "inpainting.models.image_to_text.evaluation.report:score_prompts"
build_app = single_app(command(ScoreOptions, WORK))

if __name__ == "__main__":
    run_module(build_app)
