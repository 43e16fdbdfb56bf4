"""Fill masks of an image, each with its own prompt, from the command line.

python -m inpainting.paint --image room.png --masks a.png b.png --prompts "a red cube" "a green ball"
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from inpainting.models.text_to_image.config import COMPAT, PaintOptions
from ldm.result import overwrite_setting
from ldm.settings.choices import scheduler_name
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import check_settings, setting

FULL_MODEL, TINY_MODEL = Path("models/stable-diffusion-2-inpainting"), Path("assets/tiny/inpainter")
PUBLISHED = ("layout", "encoding", "paste_back")  # what --compat sets


@dataclass(frozen=True)
class _Inputs:
    image: Path = setting(help="image of any size")
    masks: tuple[Path, ...] = setting((), help="one mask per region, of the image's size (white = paint)")
    prompts: tuple[str, ...] = setting((), help="one prompt per mask, in the same order")
    negatives: tuple[str, ...] = setting((), help="what each region should not show: none, or one per mask")
    out: Path = setting(Path("outputs/painted.png"), help="image (.png, .webp, .jpg); samples get numbers")
    model: Path | None = setting(
        None,
        help=f"model folder; without it {FULL_MODEL.as_posix()} if there, else {TINY_MODEL.as_posix()}",
    )
    lora: Path | None = setting(None, help="LoRA file in the released format, or the folder that holds it")
    lora_scale: float = setting(1.0, low=0.0, high=2.0, help="strength of the LoRA")
    seed: int = setting(0, low=0, high=2**32 - 1, help="seed of the first sample; sample i uses seed + i")
    num_samples: int = setting(1, low=1, high=64, help="how many images to paint")


@dataclass(frozen=True)
class PaintSettings(PaintOptions, _Inputs):
    compat: bool = setting(False, help="as published: layout nearest, joint encoding, whole decoded image")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", choices=("auto", "fp32", "fp16", "bf16"), help="precision of the networks")
    sheet: bool = setting(True, help="also write NAME_sheet.png: the image, its regions, the results")
    overwrite: bool = overwrite_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.scheduler is not None:
            scheduler_name(self.scheduler)

    @property
    def options(self) -> PaintOptions:
        """How to paint, without files and device."""
        options = PaintOptions(**{field.name: getattr(self, field.name) for field in fields(PaintOptions)})
        published = {name: getattr(COMPAT, name) for name in PUBLISHED}
        return replace(options, **published) if self.compat else options


build_app = single_app(command(PaintSettings, "inpainting.painting:run_paint"))

if __name__ == "__main__":
    run_module(build_app)
