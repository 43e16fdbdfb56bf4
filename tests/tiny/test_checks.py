"""What is checked before work begins, with the command that helps; controls and scenes of evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cldm.create import AutoencoderConfig
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from ldm.latents import LatentSpace
from ldm.settings.cli import run_app
from llava_bifrost.evaluate import run as locator_evaluation
from llava_bifrost.evaluate.run import LocatorEvaluation
from tiny import bundle
from tiny.compositor import training
from tiny.compositor.autoencoder import AutoencoderTraining
from tiny.compositor.training import train_first_stage
from tiny.inpainter.evaluate import InpainterEvaluation
from tiny.inpainter.measures import evaluate_inpainter
from tiny.locator.train import LocatorTraining
from tiny.locator.training import train_small_locator
from tiny.loop import Stage
from tiny.prompter.evaluate import PrompterEvaluation
from tiny.prompter.measures import evaluate_prompter
from tiny.prompter.train import PrompterTraining
from tiny.prompter.training import train_prompter
from tiny.world import split_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_shards(StoreSettings(out=folder, count=4, size=(32, 32), reference_size=(16, 16)))
    return folder


def first_stage(scenes: Path, out: Path) -> AutoencoderTraining:
    sizes = AutoencoderConfig("tiny", (8, 8, 8), 1, 4)
    return AutoencoderTraining(scenes, scenes, out, sizes, 16, 1, steps=20, bf16=False)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 40])
def test_a_first_stage_of_few_steps_is_trained_to_its_end(scenes, tmp_path, steps):
    train_first_stage(replace(first_stage(scenes, tmp_path), steps=steps, log_every=1))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["steps"] == steps
    assert np.isfinite(manifest["held_out"]["psnr_db"])


def test_a_first_stage_killed_before_its_model_is_written_is_not_trained_again(scenes, tmp_path, monkeypatch):
    config = {
        name: replace(first_stage(scenes, tmp_path / name), steps=3, log_every=1) for name in ("a", "b")
    }
    train_first_stage(config["a"])

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentSpace, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        train_first_stage(config["b"])
    monkeypatch.undo()
    monkeypatch.setattr(Stage, "_step", lambda *_: pytest.fail("trained again"))
    train_first_stage(config["b"])
    files = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("a", "b")}
    assert files["a"] == files["b"]
    for weights in (tmp_path / "a").glob("*.safetensors"):
        assert (tmp_path / "b" / weights.name).read_bytes() == weights.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"held_out": Path("none")},
            "none: no shards of rendered scenes; make them with `python -m dat",
        ),
        ({"data": Path("none")}, "none: no shards of rendered scenes"),
        ({"crop": 48}, "crop=48: the scenes of .* have sides of 32 pixels"),
    ],
)
def test_missing_scenes_are_noticed_before_training(scenes, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(training, "create_autoencoder", lambda *_: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        train_first_stage(replace(first_stage(scenes, tmp_path), **changes))


@pytest.mark.parametrize(("count", "held_out"), [(256, 512), (256, 256), (1, 1)])
def test_held_out_scenes_leave_some_to_train(count, held_out):
    with pytest.raises(ValueError, match=rf"held_out={held_out} of {count} scenes .* scenes: `python -m x"):
        split_scenes(count, held_out, "x")


def test_scenes_are_split_at_the_end():
    train, held_out = split_scenes(5, 2, "x")
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2], [3, 4])


def test_trainings_refuse_too_few_scenes_with_their_command(scenes, tmp_path):
    with pytest.raises(
        ValueError, match=rf"held_out=512 of 4 .*datasets.scenes render --out {scenes} --count 1024"
    ):
        train_small_locator(LocatorTraining(data=scenes, out=tmp_path))
    few = PrompterTraining(data=scenes, out=tmp_path, scenes=100)
    with pytest.raises(
        ValueError, match=rf"held_out=256 of 100 .*tiny.prompter.scenes --out {scenes} --count 512"
    ):
        train_prompter(few)


@pytest.mark.parametrize(
    ("part", "command"),
    [
        ("compositor", "python -m cldm.evaluate --model run/model --out numbers/e.json"),
        ("locator", "python -m llava_bifrost.evaluate --model run/model --out numbers/e.json"),
        ("inpainter", "python -m tiny.inpainter.evaluate --run run --out numbers"),
        ("prompter", "python -m tiny.prompter.evaluate --model run/model --out numbers/e.json"),
    ],
)
def test_a_missing_evaluation_names_its_command(part, command, capsys):
    assert run_app(bundle.build_app, [part, "--run", "run", "--evaluation", "numbers/e.json"]) == 2
    shown = capsys.readouterr().err
    assert f"numbers/e.json does not exist; `{command}` makes it" in " ".join(shown.split())


def test_the_blind_prompt_writer_is_an_optional_control():
    assert PrompterEvaluation().blind is None


def test_missing_scenes_of_the_prompt_writer_name_their_own_command(tmp_path):
    command = "make them with `python -m tiny.prompter.scenes"
    with pytest.raises(ValueError, match=rf"none: no shards .*; {command} --split eval --out .*none`"):
        evaluate_prompter(PrompterEvaluation(data=tmp_path / "none"))
    with pytest.raises(ValueError, match=rf"none: no shards .*; {command} --out .*none`"):
        train_prompter(PrompterTraining(data=tmp_path / "none", out=tmp_path))
    with pytest.raises(ValueError, match=r"none: no shards .*scenes render --split eval --out .*none`"):
        evaluate_inpainter(InpainterEvaluation(data=tmp_path / "none"))


@pytest.mark.parametrize(("first", "folder"), [(0, "eval"), (512, "eval/from-512"), (7, "eval/from-7")])
def test_an_option_chooses_the_first_held_out_scene(tmp_path, monkeypatch, first, folder):
    asked: list[StoreSettings] = []
    monkeypatch.setattr(locator_evaluation, "render_shards", lambda settings: asked.append(settings) or [])
    config = LocatorEvaluation(data=tmp_path / "eval", scenes=300, first_scene=first)
    assert locator_evaluation.locator_cases(config) == []
    assert (asked[0].first_seed, asked[0].count, asked[0].split) == (first, 512, "eval")
    assert asked[0].out == tmp_path / folder
