"""`run_inference.py` as a command: what it prints and writes, settings file, default model, Ctrl-C."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.images import read_image
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.images import Case
from tiny.depth.training import NOTICE

ROOT = Path(__file__).resolve().parents[2]


def test_an_option_without_effect_is_said(case: Case, caplog) -> None:
    target = case.folder / "target.png"
    assert case.run("--mode", "inpaint", "--target-mask", target, without=["--box"]) == 0
    assert "--depth has no effect: mode inpaint" in caplog.text
    caplog.clear()
    assert case.run("--init", "noise", "--strength", "0.5") == 0
    assert "--strength has no effect" in caplog.text


def test_previews_sheet_and_nothing_else(case: Case) -> None:
    assert case.run("--steps", "9", "--save-steps", "3") == 0  # another run's previews do not stay
    assert case.run("--overwrite", "--sheet", "--steps", "5", "--save-steps", "2", "--strength", "1") == 0
    written = {path.relative_to(case.out.parent).as_posix() for path in case.out.parent.rglob("*.*")}
    steps = {f"a_steps/step_{index:03d}.png" for index in (2, 4, 5)}
    assert written == {"a.png", "a.json", "a_sheet.png", *steps}
    assert all(read_image(case.out.parent / name).size == (32, 32) for name in steps)


def test_json_alone_goes_to_standard_output(case: Case, capsys) -> None:
    assert case.run("--json", "--num-samples", "2") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == [case.out.with_name(f"a_{index}.png").as_posix() for index in range(2)]
    assert [one["changed_outside"] for one in printed["drift"]] == [0, 0]
    assert case.run() == 0
    assert capsys.readouterr().out == ""


def test_flags_override_the_settings_file(case: Case) -> None:
    config = case.folder / "c.yaml"
    config.write_text(f"background: {case.folder}/room.png\nsteps: 4\ndepth: [0.2, 0.9]\nseed: 7\n")
    flags = ["--config", config, "--seed", "8"]
    assert case.run(*flags, without=["--background", "--depth"]) == 0
    recipe = read_recipe(case.out)
    assert (recipe["sampling"]["steps"], recipe["seed"]) == (4, 8)
    assert case.report()["depth"] == {"far": 0.2, "near": 0.9, "source": "range"}


def test_the_full_model_is_preferred_when_it_is_complete(case: Case, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(case.folder)
    monkeypatch.delenv("BIFROST_MODELS")
    tiny = Path(shutil.copytree(case.model, "assets/tiny/compositor"))
    card = json.loads((tiny / "compositor.json").read_text())
    (tiny / "compositor.json").write_text(json.dumps({**card, "notice": "toy weights"}))
    shutil.copytree(case.depth_model, "assets/tiny/depth")
    without = ["--model", "--background-depth"]
    Path("models/bifrost/unet").mkdir(parents=True)  # incomplete: a conversion that was interrupted
    assert case.run(without=without) == 0
    settings = read_recipe(case.out)["settings"]
    assert settings["model"] == "assets/tiny/compositor"
    assert Path(settings["depth_model"]) == ROOT / "assets/depth"
    assert [record.getMessage() for record in caplog.records].count("toy weights") == 1
    shutil.rmtree("models/bifrost")
    shutil.copytree(case.model, "models/bifrost")
    assert case.run(without=without) == 0
    assert read_recipe(case.out)["settings"]["model"] == "models/bifrost"


def test_an_interrupt_leaves_nothing(case: Case, monkeypatch, capsys) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before = case.files()
    monkeypatch.setattr("compose.painters.CompositorPipeline.paint", interrupted)
    assert case.run() == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert case.files() == before
    monkeypatch.undo()
    monkeypatch.setattr("ldm.files.os.replace", interrupted)
    assert case.run() == 130
    assert not list(case.out.parent.iterdir())


def test_help_without_arguments(capsys) -> None:
    assert run_app(build_app, []) == 0
    shown = capsys.readouterr().out
    assert "image" in shown
    assert "replay" in shown


def command_line(*argv: str) -> list[str]:
    return [sys.executable, "run_inference.py", *argv]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_the_command_itself_is_quiet_and_answers_in_json(case: Case) -> None:
    argv = case.argv(
        "--json", "--depth-model", str(case.depth_model), without=["--background-depth", "--depth"]
    )
    done = subprocess.run(command_line(*argv), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == [case.out.as_posix()]
    lines = done.stderr.splitlines()
    starts = [line.partition(":")[0] for line in lines]
    assert starts[:4] == [NOTICE.partition(":")[0], "depth", "image", "report"], done.stderr


def hears_ctrl_c() -> None:
    """A shell that runs the tests in its background makes its children deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_the_command_cleanly(case: Case) -> None:
    argv = case.argv("--steps", "1000", "--save-steps", "1")
    with subprocess.Popen(
        command_line(*argv), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c
    ) as running:
        steps, deadline = case.folder / "out" / "a_steps", time.monotonic() + 60
        while not steps.is_dir() and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, shown = running.communicate(timeout=30)
    assert (running.returncode, shown.decode().strip()) == (130, "interrupted")
    assert [path.name for path in case.out.parent.iterdir()] == ["a_steps"]
    assert all(read_image(path).size == (32, 32) for path in steps.iterdir())
