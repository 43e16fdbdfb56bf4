"""Files that an earlier version wrote (tests/fixtures/before) still replay, resume and load."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cldm.training.settings import RunConfig
from inpainting.models.image_to_text.settings import PromptTraining
from inpainting.models.text_to_image.train_text_to_image_lora import TrainLoraConfig
from ldm.images import read_image
from ldm.settings.config import load_config
from llava_bifrost.train import TrainConfig
from tests.conftest import ROOT

BEFORE = Path("tests/fixtures/before")
LLAVA = "model.image=64 model.width=16 model.heads=2 model.stages=8,8,8 model.blocks=1,1,1 model.vision_layers=1 model.hidden=16"  # noqa: E501
LOOP = (
    "{0}.steps=4 {0}.batch=2 {0}.lr=1e-3 {0}.warmup=1 {0}.log_every=1 {0}.checkpoint_every=2 {0}.bf16=false"  # noqa: E501
)
FIT = "fit.epochs=9 fit.batch=2 fit.accumulate=1 fit.workers=0 fit.log_every=1 fit.save_every=0 fit.save_epochs=false fit.precision=no fit.device=cpu fit.schedule=constant fit.warmup=0 fit.patience=0"  # noqa: E501
STAGE = "{0}.minutes=0 {0}.steps=4 {0}.batch=3 {0}.warmup=2 {0}.extra=0 {0}.bf16=false"
PAINT = f"inpainting.paint --image {BEFORE}/case/room.png --masks {BEFORE}/case/target.png --prompts 'a red cube' --steps 2 --resolution 64 --no-sheet"  # noqa: E501
# name: command of 4 steps, {out} and {scenes} to be filled in. Each was stopped after 2 of them.
RUNS = {
    "compositor": f"run_train_bifrost.py {BEFORE}/compositor.yaml out={{out}} trainer.max_steps=4",
    "locator": f"tiny.locator.train configs/tiny/locator.yaml data={{scenes}}/views out={{out}} held_out=3 {LLAVA} model.layers=2 {STAGE.format('vision')} {STAGE.format('matching')} {STAGE.format('placement')} matching.vision_lr=1e-4 placement.vision_lr=1e-4",  # noqa: E501
    "inpainter": f"tiny.inpainter.train configs/tiny/inpainter.yaml data={{scenes}}/views out={{out}} scenes=12 stages=first_stage,painter first_stage.width=8 first_stage.layers=1 first_stage.crop=32 {LOOP.format('first_stage.loop')} network.latent_size=16 network.block_channels=4,8 network.heads=1,1 network.attention=[false,true] network.norm_groups=4 network.text_width=8 network.text_layers=1 network.text_heads=1 {LOOP.format('painter')}",  # noqa: E501
    "prompter": f"tiny.prompter.train configs/tiny/prompter.yaml data={{scenes}}/sets out={{out}} scenes=12 held_out=4 vision_from=null {LLAVA} model.layers=3 {STAGE.format('vision')} {STAGE.format('writing')} writing.vision_lr=1e-4",  # noqa: E501
    "locator_lora": f"llava_bifrost.train configs/llava_bifrost/train_smoke.yaml data={BEFORE}/questions/dataset.json validation=null out={{out}} lora.rank=2 lora.alpha=4 lora.targets=q_proj lora.projector=false merge=false checked=0 fit.steps=4 {FIT}",  # noqa: E501
    "inpainter_lora": f"inpainting.models.text_to_image.train_text_to_image_lora main --config-path=configs/inpainting/text_to_image/train/sd_2_inp_rca_finetuned.yaml project_dir={{out}} pretrained=assets/tiny/inpainter data.data_dir={BEFORE}/regions data.resolution=32 lora.rank=2 lora.targets=to_q fit.steps=4 {FIT}",  # noqa: E501
    "prompter_lora": f"inpainting.models.image_to_text.fine_tune_llavanext train --config-path=configs/inpainting/image_to_text/train/llava_multimask.yaml project_dir={{out}} model=assets/tiny/prompter data.data_dir={BEFORE}/regions lora.rank=2 lora.alpha=4 lora.targets=q_proj val.instances=0 fit.validate_every=0 gradient_checkpointing=false fit.steps=4 {FIT}",  # noqa: E501
}
TABLES = {"compositor": "metrics.csv", "locator": "vision.csv", "prompter": "vision.csv"}
TABLES |= {"inpainter": "first_stage/log.csv", "inpainter_lora": "metrics.csv"}
TABLES |= {"locator_lora": "metrics.csv", "prompter_lora": "metrics.csv"}


def call(line: str, **places: Path) -> None:
    """Run a command in this process, as `python -m` or `python FILE` would."""
    words = [word.format(**places) for word in shlex.split(line)]
    before, sys.argv = sys.argv, words
    try:
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{words[0]} ended with {end.code}")
    finally:
        sys.argv = before


def call_fresh(line: str, **places: Path) -> str:
    """The same in a process of its own, for trainings leave settings of libraries behind; what it told."""
    words = [word.format(**places) for word in shlex.split(line)]
    argv = words if words[0].endswith(".py") else ["-m", words[0], *words[1:]]
    kept = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK")}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=kept, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def render(folder: Path) -> Path:
    """Scenes of the small trainers; the renderer is deterministic."""
    size = "--size 64,64 --reference-size 16,16"
    call(f"datasets.scenes render --out {{out}}/views --count 12 --objects 4,6 {size}", out=folder)
    call("tiny.prompter.scenes --out {out}/sets --count 12 --size 64,64", out=folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All results of a run, checkpoints apart."""
    files = [path for path in sorted(folder.rglob("*.safetensors")) if "checkpoint" not in path.as_posix()]
    assert files
    loaded = {file.relative_to(folder).as_posix(): load_file(file) for file in files}
    return {f"{name} {key}": value for name, values in loaded.items() for key, value in values.items()}


def largest_difference(one: Path, other: Path) -> int:
    """Of any pixel of two images."""
    a, b = (read_image(path).rgb_u8.astype(int) for path in (one, other))
    return int(np.abs(a - b).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(name: str, scenes: Path, tmp_path: Path) -> None:
    parts, whole, old = tmp_path / "parts", tmp_path / "whole", BEFORE / "runs" / name
    shutil.copytree(old, parts)
    told = call_fresh(RUNS[name], out=parts, scenes=scenes)
    # The rows of the first steps stay those of the old version: the run went on, and was not begun anew.
    table = (old / TABLES[name]).read_text()
    assert table.count("\n") > 1
    assert (parts / TABLES[name]).read_text().startswith(table)
    if name in ("locator", "prompter"):  # these append to the table in any case
        assert "vision: continuing at step 2" in told
    else:
        rows = (parts / TABLES[name]).read_text().splitlines()
        assert [row.partition(",")[0] for row in rows] == ["step", "1", "2", "3", "4"]
    call_fresh(RUNS[name], out=whole, scenes=scenes)
    one, other = weights(whole), weights(parts)
    assert one.keys() == other.keys()
    if name in ("locator_lora", "prompter_lora"):
        # In the old version's steps a frozen BatchNorm normalised by the batch, which was a fault.
        changed = torch.cat([(value.double() - other[key].double()).flatten() for key, value in one.items()])
        assert changed.norm() <= 1e-2 * torch.cat([value.double().flatten() for value in one.values()]).norm()
        return
    for key, value in one.items():
        difference = (value.double() - other[key].double()).norm()
        assert difference <= 1e-4 * value.double().norm() + 1e-6, key


@pytest.mark.slow
def test_an_interrupted_run_of_numbers_goes_on(tmp_path: Path) -> None:
    """The loop of `ldm.fit` alone, with an average and a cosine over all steps."""
    from tests.ldm.fit_job import train

    shutil.copytree(BEFORE / "runs/numbers", tmp_path / "parts")
    _, parts = train(tmp_path / "parts", ["ema=0.9", "schedule=constant"])
    rows = (tmp_path / "parts/metrics.csv").read_text()
    assert rows.startswith((BEFORE / "runs/numbers/metrics.csv").read_text())
    assert rows.count("\n") == 19
    _, whole = train(tmp_path / "whole", ["ema=0.9", "schedule=constant"])
    torch.testing.assert_close(parts.trained.weight, whole.trained.weight, rtol=1e-5, atol=1e-7)


def test_an_old_composite_of_compat_is_not_replayed_as_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was not what the published system makes, so the same settings make another image now."""
    with pytest.raises(pytest.fail.Exception):
        call(f"run_inference.py replay {BEFORE}/case/compat.png --out {{out}}", out=tmp_path / "again.png")
    assert "--compat bifrost has changed since: sampling.reimpose" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["place", "replace"])
def test_an_old_recipe_replays_to_the_same_pixels(name: str, tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    call(f"run_inference.py replay {BEFORE}/case/{name}.png --out {{out}}", out=out)
    assert largest_difference(out, BEFORE / f"case/{name}.png") <= 1  # 0 on the machine that painted it


def test_an_old_recipe_of_the_inpainter_is_read_and_paints_the_same(tmp_path: Path) -> None:
    from ldm.result import read_recipe

    recipe = read_recipe(BEFORE / "case/painted.png")
    call(f"{PAINT} --out {{out}}", out=tmp_path / "painted.png")
    now = read_recipe(tmp_path / "painted.png")
    kept = ("command", "inputs", "regions", "options", "seed")
    for newer in ("join_from", "speed", "guidance_interval"):  # without effect where they are not given
        now["options"].pop(newer)
    assert {part: now[part] for part in kept} == {part: recipe[part] for part in kept}
    if now["weights"] == recipe["weights"]:  # until the bundle is trained anew
        assert largest_difference(tmp_path / "painted.png", BEFORE / "case/painted.png") <= 1


def test_an_interrupted_build_of_paintings_ends_like_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs and journals of a build that was killed in the middle of a line."""
    command = "inpainting.data.ops build --roots rule --workers 1"
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for folder in (parts, whole):
        shutil.copytree(BEFORE / "paintings/given", folder)
    shutil.copytree(BEFORE / "paintings/begun", parts, dirs_exist_ok=True)
    trees = []
    for folder in (parts, whole):
        monkeypatch.chdir(folder)
        call(command)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        trees.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    assert trees[0] == trees[1]
    journals = sorted((ROOT / BEFORE / "paintings/begun").rglob("stamp_*.jsonl"))
    assert journals
    for journal in journals:
        lines = journal.read_bytes()
        sound = lines[: lines.rindex(b"\n") + 1]  # the last line was cut
        assert trees[0][journal.relative_to(ROOT / BEFORE / "paintings/begun").as_posix()].startswith(sound)


def test_old_scenes_are_read_and_rendered_the_same(tmp_path: Path) -> None:
    from datasets.scenes.store import read_shard

    (shard,) = sorted((BEFORE / "scenes").glob("*.safetensors"))
    size = "--size 32,32 --reference-size 16,16"
    call(f"datasets.scenes render --out {{out}} --count 4 --window object {size}", out=tmp_path)
    old, new = read_shard(shard), read_shard(tmp_path / shard.name)
    assert [fact.names for fact in old.facts] == [fact.names for fact in new.facts]
    assert np.abs(old.image_u8.astype(int) - new.image_u8).mean() < 0.1


def compositor_card(folder: Path) -> object:
    from cldm.config import load_compositor_config

    return load_compositor_config(folder)


def locator_card(folder: Path) -> object:
    from llava_bifrost.locator import read_locator_config

    return read_locator_config(folder, "llava")


def inpainter_card(folder: Path) -> object:
    from inpainting.models.text_to_image.config import InpainterConfig
    from ldm.settings.config import Layer, merge_layers

    return merge_layers(InpainterConfig, [Layer(json.loads((folder / "inpainter.json").read_text()), "")])


def prompter_card(folder: Path) -> object:
    from inpainting.prompts import CONFIG_FILE, PrompterConfig
    from ldm.settings.config import read_config

    return read_config(PrompterConfig, folder / CONFIG_FILE)


@pytest.mark.parametrize("read", [compositor_card, locator_card, inpainter_card, prompter_card])
def test_old_model_descriptions_are_read_whole(read: Callable[[Path], object]) -> None:
    """Every value of the file is in what was read."""
    from ldm.settings.config import to_plain

    name = read.__name__.removesuffix("_card") + ".json"
    folder = BEFORE / ("compositor" if read is compositor_card else "cards")
    old = json.loads((folder / name).read_text())
    now = to_plain(read(folder))

    def missing(one: dict, other: dict) -> list[str]:
        found = []
        for key, value in one.items():
            if isinstance(value, dict) and isinstance(other.get(key), dict):
                found += missing(value, other[key])
            elif key not in other or json.loads(json.dumps(other[key])) != value:
                found.append(key)
        return found

    assert missing(old, now) == []


def test_an_old_compositor_folder_loads() -> None:
    from cldm.model import load_compositor

    model, card = load_compositor(BEFORE / "compositor")
    assert card.name == "small"
    assert sum(value.numel() for value in model.state_dict().values()) > 10_000


@pytest.mark.parametrize(
    ("run", "schema"),
    [
        ("compositor", RunConfig),
        ("locator_lora", TrainConfig),
        ("inpainter_lora", TrainLoraConfig),
        ("prompter_lora", PromptTraining),
    ],
)
def test_settings_of_earlier_runs_are_read(run: str, schema: type, caplog: pytest.LogCaptureFixture) -> None:
    load_config(schema, BEFORE / "runs" / run / "config.yaml")
    said = [message for message in caplog.messages if "fit.resume has no effect any more" in message]
    assert len(said) == (schema is not RunConfig)
