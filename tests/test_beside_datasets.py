"""The commands work beside the Hugging Face library `datasets`, whose name is also ours."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compose.schema import command_modules
from tests.conftest import ROOT

TINY = "assets/tiny"
PROBE = """
import importlib, importlib.metadata, json, sys
from ldm.settings.cli import run_app

modules, runs = json.loads(sys.argv[1])
found = {"version": importlib.metadata.version("datasets"), "failed": []}
for module, words in [*((module, ["--help"]) for module in modules), *runs]:
    if run_app(importlib.import_module(module).build_app, words):
        found["failed"].append([module, words])
if runs:  # what the libraries do with a module of this name
    import accelerate, torch, transformers
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2))
    loader = accelerate.Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(data))
    found["batches"], found["trainer"] = len(list(loader)), transformers.Trainer.__name__
found["datasets"] = importlib.import_module("datasets").__file__
print("FOUND", json.dumps(found))
"""


def by_hand() -> dict[str, str]:
    """The environment without what scripts/setup.sh adds."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


def fake(folder: Path) -> Path:
    """A site-packages folder with a library of the name, which does not like to be imported."""
    (folder / "datasets").mkdir(parents=True)
    (folder / "datasets" / "__init__.py").write_text("raise ImportError(__name__)\n")
    (folder / "datasets-5.2.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: datasets\nVersion: 5.2.0\n"
    (folder / "datasets-5.2.0.dist-info" / "METADATA").write_text(metadata)
    return folder


def probe(site: Path | None, runs: list[tuple[str, list[str]]]) -> dict:
    """What the commands do with `site` behind the repository on the path."""
    given = json.dumps([list(command_modules()), runs])
    env = {**by_hand(), "PYTHONPATH": "" if site is None else str(site), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, given], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["failed"] == [], run.stderr[-3000:]
    return found


def test_every_command_answers_help_beside_a_library_of_the_name(tmp_path):
    found = probe(fake(tmp_path), [])
    assert found == {"version": "5.2.0", "failed": [], "datasets": str(ROOT / "datasets" / "__init__.py")}


@pytest.mark.parametrize("how", ["imported from the root", "as a module", "behind PYTHONPATH"])
def test_the_library_is_hidden_however_the_code_is_started(how, tmp_path):
    site, code = fake(tmp_path / "site"), "from datasets import base; print(base.__file__)"
    path = f"{ROOT}{os.pathsep}{site}" if how == "behind PYTHONPATH" else str(site)
    started = ["-m", "datasets.uvo_process", "--help"] if how == "as a module" else ["-c", code]
    run = subprocess.run(
        [sys.executable, *started], cwd=tmp_path if how == "behind PYTHONPATH" else ROOT, check=True,
        env={**by_hand(), "PYTHONPATH": path}, capture_output=True, text=True)  # fmt: skip
    assert str(ROOT / "datasets") in run.stdout or "UVO" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("library", ["fake", "installed"])
def test_an_entry_of_every_package_works_beside_it(library, tmp_path):
    if library == "installed":
        try:
            importlib.metadata.version("datasets")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("needs the Hugging Face library: pip install datasets, in an environment of its own")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "tree").mkdir()
    shutil.copy(tmp_path / "image.png", tmp_path / "tree")
    item = np.full((32, 32, 4), 255, np.uint8)
    item[:4] = 0
    Image.fromarray(item).save(tmp_path / "object.png")
    mask = np.zeros((48, 64), np.uint8)
    mask[8:32, 8:32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image, out = str(tmp_path / "image.png"), lambda name: ["--out", str(tmp_path / name)]
    place = ["--object", str(tmp_path / "object.png"), "--box", "0.2,0.2,0.7,0.8", "--painter", "bifrost"]
    models = ["--model", f"{TINY}/compositor", "--depth-model", f"{TINY}/depth"]
    masks = ["--masks", str(tmp_path / "mask.png"), "--prompts", "a red cube"]
    asked = ["image", "--image", image, "--instruction", "Place the red cube in front of the blue cone"]
    scenes = ["render", "--count", "2", "--size", "32,32", "--reference-size", "32,32"]
    trees = [str(tmp_path / "tree"), str(tmp_path / "depth")]
    export = ["export", "--source", f"{TINY}/compositor/unet"]
    runs: list[tuple[str, list[str]]] = [
        ("run_inference", ["image", "--background", image, *place, *models, *out("c.png")]),
        ("inpainting.paint", ["--image", image, *masks, "--model", f"{TINY}/inpainter", "--steps", "1",
                              *out("i.png")]),
        ("llava_bifrost.predict.__main__", [*asked, "--locator", f"{TINY}/locator", *out("l.json")]),
        ("datasets.scenes.__main__", [*scenes, *out("scenes")]),
        ("ldm.precompute_depth", [*trees, "--model", f"{TINY}/depth"]),
        ("cldm.convert.__main__", [*export, *out("unet.safetensors")]),
    ]  # fmt: skip
    found = probe(fake(tmp_path / "site") if library == "fake" else None, runs)
    assert (found["batches"], found["trainer"]) == (4, "Trainer")
    assert found["datasets"] == str(ROOT / "datasets" / "__init__.py")
    made = {path.name for path in tmp_path.iterdir()}
    assert {"c.png", "i.png", "unet.safetensors", "scenes", "depth"} <= made
