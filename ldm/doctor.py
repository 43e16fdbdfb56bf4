"""What this machine has and what is still lacking: versions, devices, models, and which part needs which.

python -m ldm.doctor
"""

import platform
import shutil
from collections import defaultdict
from pathlib import Path

import torch
import typer

from ldm.registry.models import folder_of, load_registry, missing_files, models_root
from ldm.result import library_versions
from ldm.settings.cli import run_module, single_app

GIGABYTE = 2**30
SMALL_NETWORKS = Path("assets/tiny")  # the small networks that come with the code


def print_report() -> None:
    """Print versions, devices, which models are here, and what each command still lacks."""
    registry = load_registry()
    missing = {name: missing_files(model) for name, model in registry.items()}
    devices = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    root = models_root()
    there = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
    bundle = sorted(
        path.parent.name for path in SMALL_NETWORKS.glob("*/*.json") if path.name != "manifest.json"
    )
    users: dict[str, list[str]] = defaultdict(list)
    for name, model in registry.items():
        for user in model.used_by:
            users[user].append(name)
    needs = []
    for user, names in users.items():
        lacking = [name for name in names if missing[name]]
        pulls = ", ".join(f"python -m ldm.registry pull {name}" for name in lacking)
        needs.append(f"{user}: {'lacks ' + ', '.join(lacking) + ' -> ' + pulls if lacking else 'ready'}")
    sections = {
        "machine": [
            f"python {platform.python_version()} on {platform.platform()}",
            ", ".join(f"{name} {version}" for name, version in library_versions().items()),
            f"devices: {', '.join([*devices, f'cpu ({torch.get_num_threads()} threads)'])}",
            f"models folder: {root} ({shutil.disk_usage(there).free / GIGABYTE:.0f} GB free)",
        ],
        "small networks": [
            f"{SMALL_NETWORKS}: {', '.join(dict.fromkeys(bundle)) or 'missing; git checkout -- assets/tiny'}"
        ],
        "models": [
            f"{name}: {folder_of(model)}: "
            + ("missing " + ", ".join(missing[name]) if missing[name] else "complete")
            for name, model in registry.items()
        ],
        "commands with full-size models": needs,
    }
    for title, lines in sections.items():
        typer.echo(f"{title}\n" + "\n".join(f"  {line}" for line in lines))


build_app = single_app(print_report)

if __name__ == "__main__":
    run_module(build_app)
