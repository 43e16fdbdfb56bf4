"""What this machine has and what is still lacking: versions, devices, models, and which part needs which.

python -m ldm.doctor
"""

from __future__ import annotations

import platform
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import typer

from ldm.registry.models import Model, folder_of, load_registry, missing_files, models_root
from ldm.result import library_versions
from ldm.settings.cli import run_module, single_app

GIGABYTE = 2**30


def machine_lines() -> Iterator[str]:
    """Python, libraries, devices, free disk."""
    yield f"python {platform.python_version()} on {platform.platform()}"
    yield ", ".join(f"{name} {version}" for name, version in library_versions().items())
    devices = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    yield f"devices: {', '.join([*devices, f'cpu ({torch.get_num_threads()} threads)'])}"
    root = models_root()
    there = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
    yield f"models folder: {root} ({shutil.disk_usage(there).free / GIGABYTE:.0f} GB free)"


def need_lines(registry: dict[str, Model]) -> Iterator[str]:
    """One line per command: ready, or what gets the models that it can use and does not find."""
    users: dict[str, list[str]] = defaultdict(list)
    for name, model in registry.items():
        for user in model.used_by:
            users[user].append(name)
    for user, names in users.items():
        missing = [name for name in names if missing_files(registry[name])]
        pulls = ", ".join(f"python -m ldm.registry pull {name}" for name in missing)
        yield f"{user}: {'lacks ' + ', '.join(missing) + ' -> ' + pulls if missing else 'ready'}"


def bundle_lines(folder: Path = Path("assets/tiny")) -> Iterator[str]:
    """The small networks that come with the code."""
    parts = sorted(path.parent.name for path in folder.glob("*/*.json") if path.name != "manifest.json")
    yield f"{folder}: {', '.join(dict.fromkeys(parts)) if parts else 'missing; git checkout -- assets/tiny'}"


def print_report() -> None:
    """Print versions, devices, which models are here, and what each command still lacks."""
    registry = load_registry()
    sections = {
        "machine": machine_lines(),
        "small networks": bundle_lines(),
        "models": (
            f"{name}: {folder_of(model)}: {'missing ' + ', '.join(lacks) if lacks else 'complete'}"
            for name, model in registry.items()
            for lacks in [missing_files(model)]
        ),
        "commands with full-size models": need_lines(registry),
    }
    for title, lines in sections.items():
        typer.echo(f"{title}\n" + "\n".join(f"  {line}" for line in lines))


build_app = single_app(print_report)

if __name__ == "__main__":
    run_module(build_app)
