"""What works on this machine, what each command would gain by which model, then versions, devices, models."""

import contextlib
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from ldm.files import ROOT, located, read_text
from ldm.registry.models import folder_of, load_registry, missing_files, models_root
from ldm.result import library_versions
from ldm.settings.cli import run_module, single_app

SMALL_NETWORKS = Path("assets/tiny")  # the small networks that come with the code
COMMANDS = {  # what runs with each of them
    "compositor": "run_inference.py image, replay, batch, dreambooth",
    "depth": "ldm.precompute_depth; run_inference.py without --background-depth",
    "shadow": "run_inference.py image --shadow cast",
    "locator": "run_inference.py image --instruction; llava_bifrost.predict",
    "inpainter": "inpainting.paint",
    "prompter": "inpainting.dream",
}


EXTRAS = {  # libraries that not every machine has -> what uses them
    "ray": "--ray of bulk commands",
    "openvino": "--engine openvino of composites",
    "mitsuba": "--renderer mitsuba of scenes",
    "pypatchmatch": "eraser exemplar of layers, erasing and build_dataset coco",
    "torchvision": "published metric networks",
    "timm": "CLIP encoders of other releases",
    "open_clip_torch": "published CLIP scores",
    "lpips": "published LPIPS",
    "torch-fidelity": "published FID and KID",
    "bitsandbytes": "--load-in 4bit|8bit, 8-bit optimisers",
    "lvis": "the evaluation of LVIS itself",
    "wandb": "tracker wandb of trainings",
    "tensorboard": "tracker tensorboard of trainings",
    "playwright": "tests of the page in a browser",
}


def requirement(name: str) -> str:
    """A library as the files of requirements have it: "ray==2.60.0"."""
    texts = [read_text(ROOT / f"requirements{kind}.txt") for kind in ("", "-extras")]
    lines = (line.partition(";")[0].strip() for text in texts for line in text.splitlines())
    return next(line for line in lines if re.split("[=<>]", line)[0] == name)


def lacks_mcp() -> str:
    """Why the server has no tools for agents; empty where the library for them is installed."""
    found = "the library mcp is missing"
    with contextlib.suppress(PackageNotFoundError):
        found = f"mcp {version('mcp')} is no 1.x"
        if version("mcp").startswith("1."):
            return ""
    return f"no tools: {found}; pip install {requirement('mcp')} (requirements-extras.txt)"


def print_report() -> dict[str, list[str]]:
    """Print what works now, what each command would gain, versions, devices and models."""
    report = report_sections()
    for title, lines in report.items():
        typer.echo(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    return report


def report_sections() -> dict[str, list[str]]:
    """What works now, what each command would gain, versions, devices and models: title -> lines."""
    import torch

    registry = load_registry()
    missing = {name: ", ".join(missing_files(model)) for name, model in registry.items()}
    states = {name: f"missing {names}" if names else "complete" for name, names in missing.items()}
    cards = range(torch.cuda.device_count())
    devices = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in cards]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    root = models_root()
    there = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
    small = {path.parent.name for path in located(SMALL_NETWORKS).glob("*/*.json") if path.stem != "manifest"}
    works = [f"{user}: with {SMALL_NETWORKS / part}" for part, user in COMMANDS.items() if part in small]
    if absent := COMMANDS.keys() - small:
        works.append(f"{SMALL_NETWORKS} lacks {', '.join(sorted(absent))}: git checkout -- assets/tiny")
    lack = lacks_mcp()
    gains = [f"compose.serve, for agents: {lack}"] if lack else []
    works += [] if lack else ["compose.serve, for agents: /mcp"]
    for name, use in EXTRAS.items():
        try:
            works.append(f"{use}: with {name} {version(name)}")
        except PackageNotFoundError:
            gains.append(f"{use}: pip install '{requirement(name)}'")
    for name, model in registry.items():
        users = ", ".join(model.used_by)
        if users and missing[name]:
            size = f"{model.about} ({model.size_gb:g} GB)"
            gains.append(f"{users}: {size}: python -m ldm.registry pull {name}")
        elif users:
            works.append(f"{users}: with {folder_of(model)}")
    machine = [
        f"python {platform.python_version()} on {platform.platform()}",
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        f"devices: {', '.join([*devices, f'cpu ({torch.get_num_threads()} threads)'])}",
        f"models folder: {root} ({shutil.disk_usage(there).free / 2**30:.0f} GB free)",
    ]
    models = [f"{name}: {folder_of(model)}: {states[name]}" for name, model in registry.items()]
    return {"works now": works, "would be gained": sorted(gains), "machine": machine, "models": models}


build_app = single_app(print_report)

if __name__ == "__main__":
    run_module(build_app)
