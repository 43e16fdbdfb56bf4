"""The shell scripts for inference and training with a stub in place of Python, and the scripts that draw."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cldm.create import create_compositor
from cldm.model import save_compositor
from compose.sheet import read_cases
from ldm.images import read_image
from ldm.settings.cli import run_app
from ldm.sheet import grid
from scripts.docs import draw_figure, make_examples, make_teaser
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.conftest import ROOT
from tests.pages import rehearse

STUB = """#!/bin/sh
for word; do printf '%s ' "$word" >>"$STUB_LOG"; done
echo >>"$STUB_LOG"
pwd >>"$STUB_LOG.folders"
echo "$PYTHONPATH $PYTHONSAFEPATH" >>"$STUB_LOG.paths"
if [ "$1" = - ]; then cat >/dev/null; fi
exit "${STUB_CODE:-0}"
"""
SCRIPTS = ["setup", "demo", "inference", "train", "train_llava", "convert_weight"]
FILES = ["requirements.txt", "configs/tiny/compositor.yaml", "configs/bifrost.yaml"]


@dataclass
class Checkout:
    """A copy of the scripts with a finished environment whose Python notes how it was called."""

    folder: Path
    shell: str

    def run(
        self, script: str, *arguments: str, start: Path | None = None, **settings: str
    ) -> tuple[int, str, list[str]]:
        """Exit code, output and noted calls of a script that is started at the root, or from `start`."""
        log = self.folder / "calls.log"
        log.write_text("")
        done = subprocess.run(
            [self.shell, str(self.folder / script), *arguments],
            cwd=start or self.folder,
            env={"PATH": os.environ["PATH"], "STUB_LOG": str(log), **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    def make(self, *names: str) -> None:
        """Create empty files."""
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()


@pytest.fixture(params=[shell for shell in ("bash", "dash", "sh") if shutil.which(shell)])
def checkout(request, tmp_path) -> Checkout:
    folder = tmp_path / "a checkout"
    for name in [*FILES, *(f"scripts/{script}.sh" for script in SCRIPTS)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    stub = folder / ".venv/bin/python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    requirements = (folder / "requirements.txt").read_bytes()
    sums = subprocess.run(["cksum"], input=requirements, capture_output=True, check=True)
    (folder / ".venv/.requirements").write_bytes(sums.stdout)
    return Checkout(folder, request.param)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    save_compositor(create_compositor(SMALL, 0), SMALL_CONFIG, folder)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shell", ["bash", "dash", "sh"])
def test_scripts_are_valid_in_every_shell(script, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    subprocess.run([shell, "-n", str(ROOT / f"scripts/{script}.sh")], check=True)


@pytest.mark.parametrize(
    ("script", "given", "called"),
    [
        (
            "demo",
            ["--out", "mine/a.png"],
            "run_inference.py image --config configs/demo.yaml --out mine/a.png",
        ),
        ("inference", ["--background", "a b.png"], "run_inference.py image --background a b.png"),
        ("inference", ["--help"], "run_inference.py image --help"),
        ("train", ["configs/bifrost.yaml", "out=mine"], "run_train_bifrost.py configs/bifrost.yaml out=mine"),
        ("train", ["my.yaml"], "run_train_bifrost.py my.yaml"),
        ("train_llava", ["my.yaml", "data=mine"], "-m llava_bifrost.train my.yaml data=mine"),
        ("convert_weight", ["bifrost", "--source", "w.ckpt"], "-m cldm.convert bifrost"),
    ],
)
def test_scripts_stay_where_the_user_stands(checkout, tmp_path, script, given, called):
    """Relative names are the user's; files and modules of the repository are found all the same."""
    checkout.make("assets/tiny/compositor/compositor.json")
    here = tmp_path / "here"
    here.mkdir()
    (here / "my.yaml").touch()
    code, _, calls = checkout.run(f"scripts/{script}.sh", *given, start=here)
    assert code == 0
    assert calls[-1].strip().startswith(called if called[0] == "-" else f"{checkout.folder}/{called}")
    log = checkout.folder / "calls.log"
    assert set(Path(f"{log}.folders").read_text().splitlines()) == {str(here)}
    assert set(Path(f"{log}.paths").read_text().splitlines()) == {f"{checkout.folder} 1"}


def test_the_example_is_found_from_another_folder(checkout, tmp_path):
    checkout.make("assets/tiny/compositor/compositor.json", "assets/examples/pyramid/room.png")
    (tmp_path / "here").mkdir()
    code, _, calls = checkout.run("scripts/inference.sh", start=tmp_path / "here")
    assert code == 0
    assert "--background assets/examples/pyramid/room.png" in calls[-1]
    code, output, _ = checkout.run("scripts/train.sh", "configs/none.yaml", start=tmp_path / "here")
    assert (code, "configs/none.yaml does not exist" in output) == (2, True)


def test_demo_composes_and_names_the_files(checkout):
    checkout.make(
        "outputs/demo/composite.png", "outputs/demo/composite.json", "outputs/demo/composite_sheet.png"
    )
    code, output, calls = checkout.run("scripts/demo.sh", "--seed", "3")
    assert code == 0
    assert calls[-1] == "run_inference.py image --config configs/demo.yaml --seed 3 "
    for name in ["composite.png", "composite.json", "composite_sheet.png"]:
        assert f"outputs/demo/{name}" in output


@pytest.mark.parametrize("given", [["--out", "my images/a.png"], ["--out=my images/a.png"]])
def test_demo_names_the_files_where_they_were_asked_for(checkout, given):
    checkout.make("my images/a.png", "my images/a.json")
    code, output, _ = checkout.run("scripts/demo.sh", *given)
    assert code == 0
    assert "my images/a.png" in output
    assert "my images/a.json" in output


def test_demo_fails_when_composing_fails(checkout):
    assert checkout.run("scripts/demo.sh", STUB_CODE="2")[0] == 2


def test_inference_runs_the_example_and_passes_arguments_on(checkout):
    checkout.make("assets/tiny/compositor/compositor.json", "assets/examples/pyramid/room.png")
    code, _, calls = checkout.run("scripts/inference.sh", "--seed", "3")
    assert code == 0
    assert calls[-1].startswith(
        "run_inference.py image --background assets/examples/pyramid/room.png --object "
    )
    assert calls[-1].endswith("--out outputs/inference/composite.png --seed 3 ")


def test_inference_takes_a_sentence_in_the_place_of_the_box(checkout):
    checkout.make("assets/tiny/compositor/compositor.json", "assets/examples/pyramid/room.png")
    code, _, calls = checkout.run("scripts/inference.sh", "--instruction", "Place it")
    assert code == 0
    assert "--anchors assets/examples/pyramid/anchors.json" in calls[-1]
    assert "--box" not in calls[-1]


def test_inference_example_is_a_valid_command_on_files_that_exist(checkout, monkeypatch):
    checkout.make("assets/examples/pyramid/room.png")
    calls = checkout.run("scripts/inference.sh", "--model", "m")[2]
    monkeypatch.chdir(ROOT)
    settings = rehearse(f"python {calls[-1]}", monkeypatch)[0]
    assert all(path.is_file() for path in settings.input_files.values())


@pytest.mark.parametrize(
    "own", [["--background", "a b.png"], ["--background=a b.png"], ["--config", "c.yaml"]]
)
def test_inference_leaves_the_example_out_of_your_own_images(checkout, own):
    checkout.make("models/bifrost/compositor.json")
    code, _, calls = checkout.run("scripts/inference.sh", *own)
    assert code == 0
    assert calls[-1] == f"run_inference.py image {' '.join(own)} "


def test_inference_without_a_model_says_how_to_get_one(checkout):
    code, output, calls = checkout.run("scripts/inference.sh")
    assert code == 2
    assert "sh scripts/train.sh" in output
    assert "git checkout -- assets/tiny" in output
    assert calls == []
    assert checkout.run("scripts/inference.sh", "--help")[0] == 0


def test_inference_without_the_example_says_how_to_get_it(checkout):
    code, output, _ = checkout.run("scripts/inference.sh", "--model", "runs/mine/model")
    assert code == 2
    assert "python -m scripts.docs.make_examples" in output


def test_training_does_every_step_once(checkout):
    code, _, calls = checkout.run("scripts/train.sh", "trainer.max_steps=2")
    assert code == 0
    sizes = "--window object --size 96,96 --reference-size 96,96 "
    assert calls == [
        f"-m datasets.scenes render --out data/scenes/train --count 24576 {sizes}",
        f"-m datasets.scenes render --out data/scenes/train_wide --count 12288 {sizes}--world wide ",
        f"-m datasets.scenes render --out data/scenes/eval --count 512 {sizes}--split eval ",
        "-m tiny.compositor.autoencoder configs/tiny/autoencoder.yaml ",
        "run_train_bifrost.py configs/tiny/compositor.yaml trainer.max_steps=2 ",
    ]
    for shard in ("train/shard-00095", "train_wide/shard-00047", "eval/shard-00001"):
        checkout.make(f"data/scenes/{shard}.safetensors")
    checkout.make("runs/tiny/first_stage/config.json")
    code, output, calls = checkout.run("scripts/train.sh")
    assert code == 0
    assert calls == ["run_train_bifrost.py configs/tiny/compositor.yaml "]
    assert output.count("is there") == 4


def test_training_of_another_configuration_renders_nothing(checkout):
    code, _, calls = checkout.run("scripts/train.sh", "configs/bifrost.yaml", "pretrained=models/a b")
    assert code == 0
    assert calls == ["run_train_bifrost.py configs/bifrost.yaml pretrained=models/a b "]


def test_training_stops_at_a_failed_step_and_names_a_missing_configuration(checkout):
    code, _, calls = checkout.run("scripts/train.sh", STUB_CODE="2")
    assert (code, len(calls)) == (2, 1)
    code, output, calls = checkout.run("scripts/train.sh", "configs/none.yaml")
    assert (code, calls) == (2, [])
    assert "configs/none.yaml" in output


def test_last_shards_of_the_script_are_those_of_the_renderer():
    from datasets.scenes.store import SCENES_PER_SHARD

    assert [count / SCENES_PER_SHARD for count in (24576, 12288, 512)] == [96, 48, 2]


def test_object_of_an_example_stands_partly_behind_something():
    cases = read_cases(make_examples.FOLDER / "cases.json")
    assert [case["id"] for case in cases] == list(make_examples.EXAMPLES)
    assert all(0.3 < case["visible"] < 0.9 for case in cases)


def test_teaser_has_a_row_per_example_and_four_columns(small_model, tmp_path):
    out = tmp_path / "teaser.png"
    options = ["--model", str(small_model), "--out", str(out), "--count", "2", "--height", "48"]
    assert run_app(make_teaser.build_app, options) == 0
    cells = [[np.zeros((48, 64, 3), np.uint8)] * 4] * 2
    assert read_image(out).rgb_u8.shape == grid(cells, make_teaser.TITLES, cell=48).shape


def test_figure_is_drawn_in_the_same_bytes_again(small_model, tmp_path):
    outs = [tmp_path / "a.png", tmp_path / "b.png"]
    for out in outs:
        assert run_app(draw_figure.build_app, ["--model", str(small_model), "--out", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert Image.open(outs[0]).size == (1380, 660)
