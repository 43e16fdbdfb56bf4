"""Folders of locators: the released adapter merged into LLaVA, a trained adapter merged, both ready to ask.

python -m llava_bifrost.model convert --adapter FOLDER --base models/llava-1.5-7b-hf --out models/locator
python -m llava_bifrost.model merge --adapter OUT/adapter --base models/llava-1.5-7b-hf --out models/locator
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.mllm.templates import TEMPLATES
from ldm.settings.choices import FLOAT_TYPES
from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting
from llava_bifrost.language.instruction import FORMATS
from llava_bifrost.settings import FULL


@dataclass(frozen=True)
class ConvertLocator(CheckedSettings):
    adapter: Path = setting(help="folder in LLaVA's own layout: adapter_model.*, non_lora_trainables.bin")
    base: Path = setting(help="transformers folder of LLaVA-1.5, such as models/llava-1.5-7b-hf")
    out: Path = setting(FULL, help="folder to write")
    format: str = setting("center", choices=FORMATS, help="answers it was trained to give")
    decimals: int = setting(3, low=2, high=4, help="digits of its numbers")
    template: str = setting("vicuna_v1", choices=tuple(TEMPLATES), help="chat template it was trained with")


@dataclass(frozen=True)
class MergeLocator(CheckedSettings):
    adapter: Path = setting(help="adapter folder of a run: OUT/adapter, or CHECKPOINT/adapter")
    base: Path = setting(help="the model folder that the run started from")
    out: Path = setting(FULL, help="folder to write")
    dtype: str = setting("bf16", choices=FLOAT_TYPES, help="precision of the merged weights")


def build_app() -> App:
    app = new_app("Folders of locators.")
    app.command("convert")(command(ConvertLocator, "llava_bifrost.training:convert_adapter"))
    app.command("merge")(command(MergeLocator, "llava_bifrost.training:merge_adapter"))
    return app


if __name__ == "__main__":
    run_module(build_app)
