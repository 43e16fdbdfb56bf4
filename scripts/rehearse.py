"""Run documented commands once with networks of true size and random weights; write docs/full_size.md.

    python -m scripts.rehearse NAME ... [--work FOLDER] [--steps 4] [--keep]

The folders are written in bfloat16, tensor by tensor; a command runs in a process of its own. NAME: image,
sam, paint. It needs 8 GB of disk; the folders are deleted afterwards.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.files import ROOT
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

EXAMPLE = Path("assets/examples/tent")
PLACE = ["--box", "0.305,0.159,0.488,0.578", "--depth", "0.43,0.51"]
PERIOD = 1_048_573  # a prime: the random numbers repeat after so many, rows of a matrix never coincide
TABLE = Path("docs/full_size.md")
HEAD = """# Commands at full size

Written by `python -m scripts.rehearse NAME ...`. A row is one run of a command with networks of true size and
random weights (bfloat16 on the disk), on {hardware}. Seconds by stage are those of its report, wall-clock
time; CPU seconds and peak memory are those of its process, with the start and the loading of weights.
Sampling has {steps} steps.

| command | options | seconds by stage | CPU s | peak GiB | result |
|---|---|---|---:|---:|---|
"""


def write_network(model: Any, folder: Path) -> None:
    """config.json and random weights in bfloat16; about 1 for scales of norms, small for the others."""
    import torch

    from ldm.checkpoints import save_model_config, stored_names
    from ldm.weight_files import Entry, write_safetensors

    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    def made(shape: tuple[int, ...], norm: bool) -> torch.Tensor:
        count = 1
        for side in shape:
            count *= side
        values = noise.repeat(-(-count // PERIOD))[:count].view(shape)
        fan = count // shape[0] if len(shape) > 1 else 0
        return 1 + 0.1 * values if norm else values * (0.7 / fan**0.5 if fan > 1 else 0.02)

    linear = not hasattr(model, "config")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors" if linear else save_model_config(model, folder)
    state = model.state_dict()
    names = {key: [key] for key in state} if linear else stored_names(model)
    entries = {}
    for name, keys in names.items():
        shape = (state[keys[0]].shape[0] * len(keys), *state[keys[0]].shape[1:])
        norm = len(shape) == 1 and name.endswith("weight")
        entries[name] = Entry(shape, torch.bfloat16, partial(made, shape, norm))
    write_safetensors(file, entries)


def make_compositor(folder: Path) -> None:
    from diffusers import DDIMScheduler

    from cldm.config import CONFIG_FILE, CompositorConfig, NetworkConfig
    from cldm.convert.plan import empty_networks
    from cldm.create import noise_schedule
    from ldm.settings.config import write_config

    for name, network in empty_networks(NetworkConfig()).items():
        write_network(network, folder / name)
    DDIMScheduler.from_config(noise_schedule(NetworkConfig())).save_pretrained(folder / "scheduler")
    write_config(folder / CONFIG_FILE, CompositorConfig("full size, random"))


def make_depth(folder: Path) -> None:
    from transformers import DPTConfig, DPTForDepthEstimation

    from ldm.loading import empty_parameters

    with empty_parameters():  # the sizes of Intel/dpt-large
        config = DPTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            image_size=384, backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024],
        )  # fmt: skip
        network = DPTForDepthEstimation(config)
    write_network(network, folder)


def make_sam(folder: Path) -> None:
    from transformers import SamConfig, SamModel, SamVisionConfig
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    from ldm.loading import empty_parameters

    vision = SamVisionConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, mlp_dim=5120,
        global_attn_indexes=[7, 15, 23, 31],
    )  # fmt: skip
    with empty_parameters():  # the sizes of facebook/sam-vit-huge
        network = SamModel(SamConfig(vision_config=vision.to_dict()))
    write_network(network, folder)
    SamImageProcessorPil().save_pretrained(folder)


def make_inpainter(folder: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from cldm.config import NetworkConfig
    from cldm.create import backbone, create_autoencoder
    from ldm.files import write_json
    from ldm.loading import empty_parameters

    sizes, small = NetworkConfig(), ROOT / "assets/tiny/inpainter"
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
        num_attention_heads=16, projection_dim=512, hidden_act="gelu",
    )  # fmt: skip
    up = tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in sizes.attention[::-1])
    with empty_parameters():  # the sizes of stable-diffusion-2-inpainting
        unet = UNet2DConditionModel(
            **{**backbone(sizes), "in_channels": 9}, sample_size=64, out_channels=4, up_block_types=up
        )
        networks = {"unet": unet, "text_encoder": CLIPTextModel(text)}
        networks["vae"] = create_autoencoder(sizes.autoencoder)
    for name, network in networks.items():
        write_network(network, folder / name)
    for part in ("tokenizer", "scheduler"):  # the small tokenizer has fewer words, its length is the same
        shutil.copytree(small / part, folder / part)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"})


def commands(models: Path, steps: int) -> dict[str, tuple[list[Callable[[], None]], list[str]]]:
    """Name -> what makes its folders, and the command."""
    room, cut = str(EXAMPLE / "room.png"), ["--object", str(EXAMPLE / "object.png")]
    found = ["--object", room, "--object-box", "0.1,0.2,0.6,0.9"]  # without transparency
    depth_folder = ["--dtype", "bf16", "--depth-model", str(models / "depth")]
    image = ["run_inference.py", "image", *PLACE, "--background", room, *depth_folder]
    full = ["--model", str(models / "compositor"), "--speed", "balanced", "--steps", str(steps)]
    paint = ["-m", "inpainting.paint", "--image", room, "--model", str(models / "sd2")]
    words = ["--masks", str(models / "mask.png"), "--prompts", "a red cube", "--dtype", "bf16"]
    depth = lambda: make_depth(models / "depth")  # noqa: E731
    return {
        "image": ([lambda: make_compositor(models / "compositor"), depth], [*image, *cut, *full]),
        "sam": ([lambda: make_sam(models / "sam"), depth], [*image, *found, "--sam", str(models / "sam")]),
        "paint": ([lambda: make_inpainter(models / "sd2")], [*paint, *words, "--steps", str(steps)]),
    }


def rehearse(
    names: Annotated[list[str], typer.Argument(help="image, sam, paint")],
    work: Annotated[Path | None, typer.Option(help="folder for the models; default: a temporary one")] = None,
    steps: Annotated[int, typer.Option(help="sampling steps", min=1)] = 4,
    keep: Annotated[bool, typer.Option(help="keep the models")] = False,
    out: Annotated[Path, typer.Option(help="table to write")] = TABLE,
) -> dict[str, Any]:
    """Run documented commands at full size and write what they cost."""
    from ldm.device import describe_hardware
    from ldm.images import write_mask
    from ldm.result import write_result

    models = Path(tempfile.mkdtemp(prefix="full_size_", dir=work))
    todo, rows = commands(models, steps), dict[str, dict[str, Any]]()
    if unknown := sorted(set(names) - todo.keys()):
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(todo)}")
    try:
        import numpy as np

        mask = np.zeros((384, 512), bool)  # the size of the room
        mask[120:280, 130:330] = True
        write_mask(models / "mask.png", mask)
        for name in names:
            makers, command = todo[name]
            for make in makers:
                make()
            rows[name] = run_command(command, models / f"{name}.png")
            log.info("%s: %s", name, rows[name])
            for folder in () if keep else models.glob("*/"):
                shutil.rmtree(folder)
    finally:
        if not keep:
            shutil.rmtree(models, ignore_errors=True)
    hardware = describe_hardware()
    text = HEAD.format(hardware=f"{hardware['cpu']}, {hardware['threads']} thread", steps=steps)
    for name, row in rows.items():
        options = " ".join(todo[name][1][2:]).replace(f"{models}/", "models/")
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items())
        text += (
            f"| {name} | `{options}` | {stages} | {row['cpu_s']} | {row['peak_gib']} | {row['result']} |\n"
        )
    write_result({out: text.encode()}, True)
    return rows


def run_command(command: list[str], out: Path) -> dict[str, Any]:
    """Run a command; its report, CPU seconds and peak memory. What it says where it fails."""
    full = [sys.executable, *command, "--out", str(out)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(full, cwd=ROOT, stdout=said, stderr=said)  # noqa: S603
        _, status, spent = os.wait4(process.pid, 0)  # of this process alone
        said.seek(0)
        lines = said.read().strip().splitlines()
    report = {} if status else json.loads(out.with_suffix(".json").read_text())
    return {
        "cpu_s": round(spent.ru_utime + spent.ru_stime, 1), "peak_gib": round(spent.ru_maxrss / 2**20, 2),
        "seconds": report.get("seconds", {}), "result": "written" if report else lines[-1],
    }  # fmt: skip


build_app = single_app(rehearse)

if __name__ == "__main__":
    run_module(build_app)
