"""The configuration of a model folder, how to paint, and a run over the test paintings."""

from dataclasses import dataclass
from pathlib import Path

from inpainting.data.batches import PRECISIONS
from inpainting.data.paintings import SPLITS, PaintingOptions
from ldm.settings.choices import UNET_SPEEDS
from ldm.settings.config import CheckedSettings, check_settings, setting

LAYOUTS = ("coverage", "nearest")
ENCODINGS = ("joint", "separate")
ALL, MULTI = "metrics.json", "metrics_multi.json"  # of a run over the test paintings
INCEPTION = Path("models/inception_fid/pt_inception-2015-12-05-6726825d.pth")
SQUEEZENET = Path("models/squeezenet_lpips/squeezenet1_1-b8a52dc0.pth")
# model -> FID, LPIPS, PSNR, CLIP-IQA, I2I, T2I on all test images, and on those with several masks.
PAPER_ROWS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "HQPrompt": ((19.18, 22.82, 14.55, 71.51, 84.87, 21.10), (31.86, 24.29, 14.36, 73.89, 85.63, 20.92)),
    "SD-2-Inp": ((15.07, 21.90, 14.66, 73.10, 88.87, 25.70), (27.40, 23.63, 14.35, 75.74, 88.93, 24.91)),
    "RCA, no FT": ((15.39, 21.98, 14.59, 73.24, 88.83, 25.81), (28.03, 23.78, 14.24, 75.83, 88.85, 25.04)),
    "FineTuned": ((15.49, 22.06, 14.44, 74.64, 89.05, 26.31), (27.83, 23.96, 14.06, 77.68, 89.04, 25.40)),
    "RCA-FineTuned": ((15.32, 22.00, 14.46, 74.30, 89.28, 26.72), (27.45, 23.74, 14.13, 77.21, 89.35, 25.93)),
    "RCA-FT-Gen": ((15.30, 22.69, 14.05, 72.80, 87.47, 23.25), (27.94, 24.42, 13.64, 76.01, 87.68, 22.94)),
}


@dataclass(frozen=True)
class PaintOptions(CheckedSettings):
    """How to paint; None where the model's own recommendation holds."""

    scheduler: str | None = setting(None, help="sampler by name; without it the model's")
    steps: int | None = setting(None, low=1, high=1000, help="sampling steps; without it the model's")
    guidance: float | None = setting(
        None, low=0.0, high=30.0, help="classifier-free guidance, 1 = off; without it the model's"
    )
    strength: float = setting(
        1.0, low=0.01, high=1.0, help="noise put on the image; below 1 its colours and shapes are partly kept"
    )
    negative: str = setting("", help="what no region should show; a region's own negative prompt comes first")
    rca: bool = setting(True, help="rectified cross-attention; off = all prompts joined, read everywhere")
    layout: str | None = setting(
        None,
        choices=LAYOUTS,
        help="cells of a region at coarse resolutions: all it touches, or by top-left pixel (published)",
    )
    encoding: str | None = setting(
        None, choices=ENCODINGS, help="one sequence for all prompts (published), or one for each prompt"
    )
    soft_edges: float = setting(0.0, low=0.0, high=256.0, help="pixels over which a prompt fades into others")
    join_from: float = setting(
        1.0, low=0.0, high=1.0, help="part of the steps after which every pixel reads all prompts; 1 = never"
    )
    speed: str = setting("exact", choices=tuple(UNET_SPEEDS),
        help="balanced, fast: steps take guidance, deep features from others: nearly the same")  # fmt: skip
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0), low=0, high=1, help="noise levels t/T at which guidance acts; elsewhere one pass"
    )
    resolution: int | None = setting(
        None, low=16, high=4096, help="shorter side in pixels at which to paint; without it the model's"
    )
    paste_back: bool = setting(True, help="keep pixels outside the masks; off: the decoded image (published)")
    feather: float = setting(
        0.005, low=0.0, high=0.5, help="blend inside the masks' edge, as a fraction of the shorter side"
    )


DEFAULTS = PaintOptions()
# The published system, switch by switch.
COMPAT = PaintOptions(layout="nearest", encoding="joint", paste_back=False)


@dataclass(frozen=True)
class Recommended(CheckedSettings):
    """Sampler settings that suit a model. Published: the sampler of the model folder, 50 steps, 7.5."""

    scheduler: str = setting("", help="sampler by name; empty = the class that scheduler_config.json names")
    steps: int = setting(50, low=1, high=1000, help="sampling steps")
    guidance: float = setting(7.5, low=0.0, high=30.0, help="classifier-free guidance, 1 = off")


@dataclass(frozen=True)
class InpainterConfig(CheckedSettings):
    """`inpainter.json` of a model folder; a stock Stable Diffusion folder has none and gets these values."""

    name: str = setting("inpainter", help="short name for logs and recipes")
    notice: str = setting("", help="logged once when the model is loaded")
    vae: str = setting("vae", help="folder of the autoencoder, relative to the model folder")
    lora: str = setting("", help="LoRA that belongs to the model, relative to its folder; empty = none")
    resolution: int = setting(0, low=0, high=4096, help="shorter side in training; 0 = as the UNet says")
    layout: str = setting("coverage", choices=LAYOUTS, help="default layout of regions")
    encoding: str = setting("joint", choices=ENCODINGS, help="how prompts were encoded in training")
    sampling: Recommended = setting(Recommended(), help="default sampler settings")


@dataclass(frozen=True)
class BackboneFiles(CheckedSettings):
    """Files of the metric models. `python -m ldm.registry pull NAME` gets them."""

    inception: Path = setting(INCEPTION, help="Inception-v3 of FID")
    squeezenet: Path = setting(SQUEEZENET, help="SqueezeNet 1.1 of LPIPS")
    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIPSim")
    clip_iqa: Path = setting(
        Path("models/clip_iqa/RN50.pt"),
        help="CLIP of CLIP-IQA: OpenAI's RN50.pt (published), or a CLIP folder",
    )


@dataclass(frozen=True)
class PaintingsConfig:
    output_dir: Path = setting(help="folder of the filled images")
    row: str = setting("", choices=("", *PAPER_ROWS), help="row of the paper's table that this run repeats")
    seed: int = setting(42, low=0, help="seed of the regions and, with each name, of its image")
    pretrained: Path = setting(Path("models/stable-diffusion-2-inpainting"), help="model folder")
    lora: Path | None = setting(None, help="LoRA in the released format: file, or folder that holds it")
    checkpoint: str = setting("", help="best, latest, or its name, where lora is the folder of a training")
    fixed_prompt: str | None = setting(None, help="one prompt for all regions instead of their captions")
    texts_dir: Path | None = setting(None, help="folder of NAME.json, prompts to use instead of captions")
    global_anns_path: Path | None = setting(None, help="descriptions of whole images, for one more metric")
    split: str = setting("test", choices=SPLITS[1:], help="which images")
    data: PaintingOptions = setting(PaintingOptions(), help="regions of the images")
    paint: PaintOptions = setting(COMPAT, help="how to paint; by default as published")
    batch: int = setting(8, low=1, help="images that go through the model together")
    workers: int = setting(8, low=0, help="threads that read; 0: one per core")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", help="auto, fp32, fp16 or bf16")
    llava_model_id: str = setting("", help="prompt writer: folder or hub name, or folder of its adapter")
    llava_checkpoint: str = setting("", help="of its training in that folder: best, latest, or a name")
    llava_base: str = setting("", help="model under the adapter; default: what the adapter names")
    llava_output_dir: Path | None = setting(None, help="folder of the prompts it writes")
    llava_precision: str = setting("auto", choices=PRECISIONS, help="4bit as published, or full")
    llava_constrained: bool = setting(True, help="one closed tag per colour; off: decoded as published")
    max_new_tokens: int = setting(512, low=1, help="longest answer of the prompt writer, all its prompts")
    backbones: BackboneFiles = setting(BackboneFiles(), help="metric models")
    resamples: int = setting(2000, low=0, help="bootstrap resamples of the intervals; 0 = none")
    fid_resamples: int = setting(20, low=0, help="the same for FID and KID, which are slow")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.fixed_prompt is not None and self.texts_dir is not None:
            raise ValueError("fixed_prompt and texts_dir exclude each other")
