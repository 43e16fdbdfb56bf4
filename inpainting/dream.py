"""From an image and masks to a finished image: what could be behind each mask is written, then painted.

    python -m inpainting.dream --image painting.jpg --masks a.png b.png --prompts "" "a red cube"

A mask without prompt gets one from a vision-language model that sees the rest of the image (paper section 3).
"""

from dataclasses import dataclass
from pathlib import Path

from inpainting.data.batches import PRECISIONS
from inpainting.models.image_to_text.settings import RELEASED, TINY, Decoding
from inpainting.paint import PaintSettings
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import setting
from ldm.settings.later import later_names


@dataclass(frozen=True)
class DreamSettings(PaintSettings):
    prompts: tuple[str, ...] = setting(
        (), help="known prompts in the order of the masks; an empty or missing one is written"
    )
    out: Path = setting(Path("outputs/dreamed.png"), help="image (.png, .webp, .jpg); samples get numbers")
    prompter: Path | None = setting(
        None,
        help="prompt writer: model folder, or folder of its adapter; without it "
        f"{RELEASED.as_posix()} if there, else {TINY.as_posix()}",
    )
    adapter: Path | None = setting(None, help="adapter of the prompt writer, where --prompter is its model")
    precision: str = setting("auto", choices=PRECISIONS, help="prompt writer in 4 bits as published, or full")
    constrained: bool = setting(
        True, help="one closed, non-empty prompt per mask is certain; off: decoded as published"
    )
    temperature: float = setting(0.0, low=0.0, high=5.0, help="0: the likeliest words; else drawn by --seed")
    longest: int | None = setting(None, low=1, high=512, help="most tokens of a prompt; else the model's")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoding  # noqa: B018 -- refuses what does not go together

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.constrained, self.temperature, self.seed, self.longest)


__getattr__ = later_names("inpainting", {"dream": "painting"})  # from inpainting.dream import dream
build_app = single_app(command(DreamSettings, "inpainting.painting:run_dream"))

if __name__ == "__main__":
    run_module(build_app)
