"""Published checkpoints <-> our folders, strictly and with a report.

    python -m cldm.convert anydoor --source epoch=1-step=8687.ckpt --out models/anydoor
    python -m cldm.convert bifrost --source bifrost.ckpt --out models/bifrost --report models/bifrost.json
    python -m cldm.convert sd21 --source v2-1_512-ema-pruned.ckpt --dinov2 dinov2_vitg14_pretrain.pth --out models/bifrost_start
    python -m cldm.convert dinov2 | dpt --source FILE --out FOLDER
    python -m cldm.convert export --source models/bifrost --out bifrost.safetensors

The whole plan is made before the first byte is written, weights are then moved one at a time, and the folder
appears only when it is complete.
"""  # noqa: E501

from __future__ import annotations

import typer

from cldm.convert.convert import CompositorSettings, ConvertSettings, convert_compositor, convert_single
from cldm.convert.export import ExportSettings, export
from ldm.settings.cli import command, new_app, run_module


def bifrost(settings: CompositorSettings) -> None:
    """A released Bifrost checkpoint -> a compositor folder."""
    convert_compositor("bifrost", settings)


def anydoor(settings: CompositorSettings) -> None:
    """An AnyDoor checkpoint -> a folder that works at once; its depth branch starts as the UNet's encoder."""
    convert_compositor("anydoor", settings)


def sd21(settings: CompositorSettings) -> None:
    """Stable Diffusion 2.1 base (512 pixels) -> a training start; both branches copy the UNet's encoder."""
    convert_compositor("sd21", settings)


def dinov2(settings: ConvertSettings) -> None:
    """DINOv2 ViT-g/14 (original file) -> a transformers folder for reference images of 224 pixels."""
    convert_single("dinov2", settings)


def dpt(settings: ConvertSettings) -> None:
    """DPT-Large of MiDaS (original file) -> a transformers folder."""
    convert_single("dpt", settings)


def build_app() -> typer.Typer:
    app = new_app("Convert published checkpoints to folders, and back.")
    for work in (bifrost, anydoor, sd21):
        app.command(work.__name__)(command(CompositorSettings, work))
    for single in (dinov2, dpt):
        app.command(single.__name__)(command(ConvertSettings, single))
    app.command("export")(command(ExportSettings, export))
    return app


if __name__ == "__main__":
    run_module(build_app)
