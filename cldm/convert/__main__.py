"""Published checkpoints <-> our folders, strictly and with a report.

python -m cldm.convert anydoor --source epoch=1-step=8687.ckpt --out models/anydoor
python -m cldm.convert bifrost --source bifrost.ckpt --out models/bifrost --report models/bifrost.json
python -m cldm.convert sd21 --source v2-1_512-ema-pruned.ckpt --dinov2 FILE --out models/bifrost_start
python -m cldm.convert export --source models/bifrost --out bifrost.safetensors
"""

from functools import partial

from cldm.config import CompositorSettings, ConvertSettings, ExportSettings
from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.later import later

COMPOSITORS = {  # verb -> help
    "bifrost": "A released Bifrost checkpoint -> a compositor folder.",
    "anydoor": "An AnyDoor checkpoint -> a folder that works at once; its depth branch starts as the UNet's "
    "encoder.",
    "sd21": "Stable Diffusion 2.1 base (512 pixels) -> a training start; both branches copy the UNet's "
    "encoder.",
}
SINGLE = {
    "dinov2": "DINOv2 ViT-g/14 (original file) -> a transformers folder for reference images of 224 pixels.",
    "dpt": "DPT-Large of MiDaS (original file) -> a transformers folder.",
}


def build_app() -> App:
    app = new_app("Convert published checkpoints to folders, and back.")
    compositor, single = (later(f"cldm.convert.convert:convert_{kind}") for kind in ("compositor", "single"))
    for kind, text in COMPOSITORS.items():
        app.command(kind, help=text)(command(CompositorSettings, partial(compositor, kind)))
    for kind, text in SINGLE.items():
        app.command(kind, help=text)(command(ConvertSettings, partial(single, kind)))
    app.command("export")(command(ExportSettings, "cldm.convert.export:export"))
    return app


if __name__ == "__main__":
    run_module(build_app)
