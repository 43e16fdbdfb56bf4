"""From an image and masks to a finished image: the function, the command, and what it refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inpainting.dream import build_app
from inpainting.models.image_to_text.settings import Decoding
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.models.text_to_image.load import Inpainter, load_inpainter
from inpainting.models.text_to_image.pipeline import PaintResult, RegionPrompt
from inpainting.painting import Dream, Prompts, dream, write_missing
from inpainting.prompts import COLORS, CONFIG_FILE, PrompterConfig, rgb_of_color
from ldm.decode import LoadedImage
from ldm.images import read_image, write_mask, write_png
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from ldm.settings.config import write_config
from ldm.sheet import grid, wrap_text
from tests.conftest import ROOT
from tests.inpainting.small_inpainter import QUICK, save_inpainter, small_inpainter
from tests.ldm.small_mllm import small_folder

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
LEFT, RIGHT, TOP = (np.zeros((48, 64), bool) for _ in range(3))
LEFT[8:40, 4:24], RIGHT[8:40, 30:60], TOP[0:6] = True, True, True
SHORT = Decoding(longest=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """painter/, and writer/, an untrained LLaVA that knows three colours."""
    folder = tmp_path_factory.mktemp("models")
    save_inpainter(small_inpainter(folder / "tokenizer"), folder / "painter")
    config = PrompterConfig(
        name="small writer", colors=("red", "green", "blue"), longest=5, notice="untrained"
    )
    write_config(small_folder("llava", folder / "writer") / CONFIG_FILE, config)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Inpainter:
    return load_inpainter(folder / "painter")


@pytest.fixture(scope="module")
def writer(folder: Path) -> PromptWriter:
    return PromptWriter.load(folder / "writer", device="cpu")


@pytest.fixture
def files(tmp_path: Path, folder: Path) -> list[str]:
    """The arguments that every call of the command has."""
    write_png(tmp_path / "image.png", IMAGE, alpha_u8=np.full(IMAGE.shape[:2], 90, np.uint8))
    masks = {"a": LEFT, "b": RIGHT, "c": TOP, "d": LEFT | TOP, "none": LEFT & False, "small": LEFT[:20]}
    for name, mask in masks.items():
        write_mask(tmp_path / f"{name}.png", mask)
    places = {"--image": tmp_path / "image.png", "--out": tmp_path / "out.png"}
    models = {"--model": folder / "painter", "--prompter": folder / "writer"}
    base = [word for name, path in {**places, **models}.items() for word in (name, str(path))]
    return [*base, "--steps", "1", "--scheduler", "ddim", "--device", "cpu"]


def masks_of(tmp_path: Path, *names: str) -> list[str]:
    return ["--masks", *(str(tmp_path / f"{name}.png") for name in names)]


def test_missing_prompts_are_written_and_painted(writer: PromptWriter, pipe: Inpainter):
    masks = [LEFT, RIGHT, TOP]
    done = dream(IMAGE, masks, writer, pipe, ["", "a red cube"], 3, QUICK)
    assert done.prompts.written == [True, False, True]
    assert done.prompts.texts[1] == "a red cube"
    assert all(done.prompts.texts)
    assert done.prompts.colors == ["green", "blue", "red"], "given first, the last one is red"
    assert [region.prompt for region in done.result.regions] == done.prompts.texts
    outside = ~(LEFT | RIGHT | TOP)
    assert np.array_equal(done.image_u8[outside], IMAGE[outside])
    assert not np.array_equal(done.image_u8, IMAGE)
    shown = {tuple(color) for color in done.sheet(IMAGE).reshape(-1, 3)}
    assert {COLORS["green"], COLORS["blue"], COLORS["red"]} <= shown
    again = dream(IMAGE, np.stack(masks), None, pipe, done.prompts.texts, 3, QUICK)
    assert np.array_equal(again.image_u8, done.image_u8)
    with pytest.raises(ValueError, match="1 masks have no prompt, and no prompt writer"):
        dream(IMAGE, masks, None, pipe, ["a", "b"])


def test_the_command(tmp_path: Path, files: list[str], folder: Path, capsys: pytest.CaptureFixture[str]):
    words = [*masks_of(tmp_path, "a", "b", "c"), "--prompts", "", "a red cube", "--num-samples", "2"]
    assert run_app(build_app, [*files, *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["written"] for row in report["prompts"]] == [True, False, True]
    assert [one["changed_outside"] for one in report["drift"]] == [0, 0]
    assert report["seconds"]["write"] > 0
    first, recipe = read_image(tmp_path / "out_0.png"), read_recipe(tmp_path / "out_1.png")
    outside = (first.rgb_u8 == IMAGE).all(axis=2)
    assert (first.alpha_u8[outside] == 90).mean() > 0.9, "transparency is carried over"
    assert first.alpha_u8[~outside].max() == 255, "what was painted is seen"
    assert (recipe["command"], recipe["seed"]) == ("dream", 1)
    assert recipe["prompter"]["card"]["name"] == "small writer"
    assert recipe["prompter"]["weights"]["model"]
    texts = [row["prompt"] for row in report["prompts"]]
    assert [region["prompt"] for region in recipe["regions"]] == texts
    assert json.loads((tmp_path / "out_0.json").read_text())["prompts"] == report["prompts"]
    assert read_image(tmp_path / "out_sheet.png").size[1] > 4 * 256
    before = (tmp_path / "out_0.png").read_bytes()
    assert run_app(build_app, [*files, *words, "--json"]) == 0
    assert (tmp_path / "out_0.png").read_bytes() == before, "same command, same bytes"
    given = [*masks_of(tmp_path, "a", "b", "c"), "--prompts", *texts, "--prompter", "absent"]
    assert run_app(build_app, [*files, *given]) == 0, "with all prompts given nothing is written"
    assert np.array_equal(read_image(tmp_path / "out.png").rgb_u8, first.rgb_u8)


def test_published_decoding_and_drawn_prompts(
    tmp_path: Path, files: list[str], caplog: pytest.LogCaptureFixture
):
    masks = masks_of(tmp_path, "a", "b")
    with caplog.at_level(logging.WARNING):
        assert run_app(build_app, [*files, *masks, "--no-constrained", "--no-sheet"]) == 0
    assert "mask 1: the answer holds no prompt; it is painted without one" in caplog.text
    drawn = set()
    for seed in ("1", "2"):
        assert run_app(build_app, [*files, *masks, "--temperature", "1.5", "--no-sheet", "--seed", seed]) == 0
        drawn.add(str(read_recipe(tmp_path / "out.png")["prompter"]["prompts"]))
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("masks", "rest", "message"),
    [
        ([], [], "nothing to paint: no mask is given (--masks)"),
        (["a"], ["--prompts", "", "b"], "more prompts than masks: 2 prompts, 1 masks (--prompts)"),
        (["a", "none"], [], "none.png is empty: no pixel"),
        (["small"], [], "small.png is 64 x 20 pixels, its image is 64 x 48"),
        (["absent"], [], "absent.png"),
        (["a", "b", "c", "d"], [], "small writer knows 3 colours (red, green, blue), got 4 masks"),
        (["a"], ["--negatives", "b", "c"], "2 negative prompts for 1 masks"),
        (["a"], ["--prompter", "absent"], "absent: no such folder of a prompt writer (--prompter)"),
        (["a"], ["--prompter", "assets"], "assets: no prompt writer there (config.json is missing)"),
        (["a"], ["--adapter", "assets"], "assets: no adapter there (adapter_config.json is missing)"),
        (["a"], ["--model", "absent"], "absent: no such model folder"),
        (["a"], ["--image", "absent.png"], "absent.png"),
        (["a"], ["--temperature", "9"], "--temperature must be in [0.0, 5.0], got 9.0"),
        (["a"], ["--temperature", "1", "--no-constrained"], "temperature must be 0"),
        (["a"], ["--longest", "0"], "--longest must be in [1, 512], got 0"),
        (["a"], ["--out", "out.bmp"], "out.bmp"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], masks, rest, message
):
    given = masks_of(tmp_path, *masks) if masks else []
    assert run_app(build_app, [*files, *given, *rest]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_an_input_is_never_overwritten(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]):
    words = [*masks_of(tmp_path, "a"), "--out", str(tmp_path / "a.png")]
    assert run_app(build_app, [*files, *words]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_hidden_masks_are_named(writer: PromptWriter, caplog: pytest.LogCaptureFixture):
    whole, hidden = np.ones_like(LEFT), "lies under smaller masks"
    for masks, number in ([LEFT, RIGHT], 0), ([whole, LEFT], 0), ([LEFT, LEFT.copy()], 1):
        caplog.clear()
        write_missing(IMAGE, masks, [], writer, SHORT)
        assert [hidden in caplog.text, f"mask {number} {hidden}" in caplog.text] == [number > 0] * 2
    write_missing(IMAGE, [LEFT, LEFT | RIGHT, RIGHT], [], writer, SHORT)
    assert f"mask 2 {hidden}" in caplog.text


def test_the_prompts_below_the_sheet():
    prompts = Prompts(["a dog", "a very " + "long " * 60 + "x" * 200], [True, False], ["red", "blue"])
    regions = [RegionPrompt(mask, text) for mask, text in zip((LEFT, RIGHT), prompts.texts, strict=True)]
    result = PaintResult([LoadedImage(IMAGE)], LEFT | RIGHT, [0], {}, {}, regions)
    images = grid([[IMAGE] * 3], ["before", "masks", "after"])
    sheet = Dream(prompts, result).sheet(IMAGE)
    below = sheet[len(images) :]
    assert sheet.shape[1] == images.shape[1]
    assert (below[:, -4:] == 255).all(), "no letter is cut off at the edge"
    assert tuple(below[12, 12]) == rgb_of_color("red")
    short = Dream(replace(prompts, texts=["", ""]), result).sheet(IMAGE)
    assert len(short) < len(sheet)


def test_long_words_are_broken():
    from PIL import ImageFont

    font = ImageFont.load_default(size=18)
    lines = wrap_text("a " + "w" * 90 + " b", font, 200, cut=True).split("\n")
    assert all(font.getlength(line) <= 201 for line in lines)
    assert "".join(lines).replace(" ", "") == "a" + "w" * 90 + "b"


def test_the_small_models_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With no other model in place: prompts of rendered solids, in the words that the small painter knows."""
    from tiny.world import read_name

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    masks = [f"assets/regions/{name}.png" for name in ("left", "front", "right")]
    words = ["--image", "assets/examples/tent/room.png", "--masks", *masks, "--device", "cpu"]
    assert run_app(build_app, [*words, "--out", str(tmp_path / "out.png")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["prompts"]
    assert all(row["written"] and read_name(row["prompt"]) for row in rows), rows
    assert read_recipe(tmp_path / "out.png")["command"] == "dream"
