"""The command that paints regions: files in, files out, and what it says when something does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from inpainting.paint import build_app
from ldm.images import read_image, write_mask, write_png
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from tests.inpainting.small_inpainter import save_inpainter, small_inpainter

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MASK = np.zeros((48, 64), bool)
MASK[8:40, 10:40] = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_inpainter(small_inpainter(folder / "tokenizer"), folder / "model")
    return folder / "model"


@pytest.fixture
def files(tmp_path: Path, folder: Path) -> list[str]:
    write_png(tmp_path / "image.png", IMAGE, alpha_u8=np.full(IMAGE.shape[:2], 90, np.uint8))
    write_mask(tmp_path / "a.png", MASK)
    write_mask(tmp_path / "b.png", np.fliplr(MASK))
    write_mask(tmp_path / "none.png", MASK & False)
    write_mask(tmp_path / "small.png", MASK[:20])
    base = ["--image", str(tmp_path / "image.png"), "--model", str(folder), "--steps", "1"]
    return [*base, "--scheduler", "ddim", "--device", "cpu", "--out", str(tmp_path / "out.png")]


def test_paint_command(tmp_path, files, capsys):
    masks = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    several = ["--masks", *masks, "--prompts", "a red cube", "a green ball", "--json", "--num-samples", "2"]
    assert run_app(build_app, [*files, *several]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["changed_outside"] for one in report["drift"]] == [0, 0]
    first = read_image(tmp_path / "out_0.png")
    outside = ~(MASK | np.fliplr(MASK))
    assert np.array_equal(first.rgb_u8[outside], IMAGE[outside])
    assert (first.alpha_u8[outside] == 90).all(), "transparency is carried over"
    assert first.alpha_u8[~outside].max() == 255, "what was painted is seen"
    recipe = read_recipe(tmp_path / "out_1.png")
    assert (recipe["seed"], recipe["settings"]["prompts"]) == (1, ["a red cube", "a green ball"])
    assert set(recipe["weights"]) == {"unet", "text_encoder", "vae"}
    assert json.loads((tmp_path / "out_1.json").read_text())["seed"] == 1
    assert read_image(tmp_path / "out_sheet.png").size[1] > 4 * 256
    repeated = [word for pair in zip(["--masks"] * 2, masks, strict=True) for word in pair]
    repeated += ["--prompts", "a red cube", "--prompts", "a green ball", "--no-sheet"]
    (tmp_path / "out_sheet.png").unlink()
    assert run_app(build_app, [*files, *repeated]) == 0
    assert np.array_equal(read_image(tmp_path / "out.png").rgb_u8, first.rgb_u8)
    assert not (tmp_path / "out_sheet.png").exists()


@pytest.mark.parametrize("flags", [[], ["--no-sheet"], ["--overwrite"]])
def test_the_name_of_the_image_does_not_change_it(tmp_path, files, flags):
    words = ["--masks", str(tmp_path / "a.png"), "--prompts", "a cube"]
    other = tmp_path / "other/place/b.png"
    assert (
        run_app(build_app, [*files, *words])
        == run_app(build_app, [*files[:-1], str(other), *words, *flags])
        == 0
    )
    assert (tmp_path / "out.png").read_bytes() == other.read_bytes()


def test_compat_paints_the_whole_image(tmp_path, files):
    words = ["--masks", str(tmp_path / "a.png"), "--prompts", "a cube", "--compat"]
    assert run_app(build_app, [*files, *words]) == 0
    assert read_recipe(tmp_path / "out.png")["options"]["layout"] == "nearest"
    assert json.loads((tmp_path / "out.json").read_text())["drift"]["changed_outside"] > 0


def test_a_long_prompt_is_warned_of(tmp_path, files, caplog):
    with caplog.at_level(logging.WARNING):
        words = ["--masks", str(tmp_path / "a.png"), "--prompts", "a red cube " * 30]
        assert run_app(build_app, [*files, *words]) == 0
    assert "prompt 1 is too long: the model reads 'a red cube" in caplog.text
    assert json.loads((tmp_path / "out.json").read_text())["cuts"][0]["lost"].startswith("a red cube")


@pytest.mark.parametrize(
    ("masks", "rest", "message"),
    [
        ([], ["--prompts", "a cube"], "nothing to paint: got 0 masks and 1 prompts"),
        (["a.png"], [], "nothing to paint: got 1 masks and 0 prompts"),
        (["a.png"], ["--prompts", "a", "b"], "more prompts than masks: 2 prompts, 1 masks"),
        (["a.png", "b.png"], ["--prompts", "a"], "more masks than prompts: 1 prompts, 2 masks"),
        (["a.png", "none.png"], ["--prompts", "a", "b"], "none.png is empty: no pixel"),
        (["small.png"], ["--prompts", "a"], "small.png is 64 x 20 pixels, its image is 64 x 48"),
        (["c.png"], ["--prompts", "a"], "c.png"),
        (["a.png"], ["--prompts", "a", "--negatives", "b", "c"], "2 negative prompts for 1 masks"),
        (["a.png"], ["--prompts", "a", "--lora", "absent"], "absent: no such LoRA file"),
        (["a.png"], ["--prompts", "a", "--scheduler", "dimm"], "did you mean 'ddim'"),
        (["a.png"], ["--prompts", "a", "--model", "absent"], "absent: no such model folder"),
        (["a.png"], ["--prompts", "a", "--steps", "0"], "--steps must be in [1, 1000], got 0"),
    ],
)
def test_command_refuses_in_one_line(tmp_path, files, capsys, masks, rest, message):
    given = ["--masks", *(str(tmp_path / name) for name in masks)] if masks else []
    assert run_app(build_app, [*files, *given, *rest]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_an_input_is_never_overwritten(tmp_path, files, capsys):
    words = ["--masks", str(tmp_path / "a.png"), "--prompts", "a", "--out", str(tmp_path / "a.png")]
    assert run_app(build_app, [*files, *words]) == 2
    assert "would be overwritten" in capsys.readouterr().err
