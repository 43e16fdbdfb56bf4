"""From another folder: what comes with the code is found beside it, what users name where they stand."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

import compose.batch_settings
import compose.models
import compose.settings
import inpainting.paint
import inpainting.painting
from inpainting.config_path import find_config
from ldm.files import ROOT, located
from ldm.registry.models import depth_folder, load_registry
from ldm.settings.config import load_config, setting
from llava_bifrost.settings import LocatorOptions


@dataclass(frozen=True)
class Data:
    """A section."""

    table: Path = setting(Path("configs/datasets.yaml"))


@dataclass(frozen=True)
class Job:
    """Paths in every place that a setting can come from."""

    model: Path = setting(Path("assets/tiny/depth"))
    depth: str = setting("assets/tiny/depth")
    image: Path | None = setting(None)
    out: Path = setting(Path("outputs/a.png"))
    prompt: str = setting("assets")
    data: Data = setting(Data())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BIFROST_MODELS", raising=False)
    return tmp_path


def test_settings_find_what_comes_with_the_code(here: Path) -> None:
    (here / "my.yaml").write_text("image: assets/examples/cone/room.png\nout: configs/new.png\n")
    job = load_config(Job, Path("my.yaml"), ["depth=assets/tiny/locator"])
    assert job.model == ROOT / "assets/tiny/depth"
    assert job.depth == (ROOT / "assets/tiny/locator").as_posix()
    assert job.image == ROOT / "assets/examples/cone/room.png"
    assert job.data.table == ROOT / "configs/datasets.yaml"
    assert (job.out, job.prompt) == (Path("configs/new.png"), "assets")


def test_what_lies_where_the_user_stands_comes_first(here: Path) -> None:
    for name in ("assets/tiny/depth/config.json", "configs/demo.yaml"):
        (here / name).parent.mkdir(parents=True)
        (here / name).write_text("{}")
    assert located("assets/tiny/depth") == Path("assets/tiny/depth")
    assert located("assets/tiny/locator") == ROOT / "assets/tiny/locator"
    assert load_config(Job, Path("configs/demo.yaml")).model == Path("assets/tiny/depth")


@pytest.mark.parametrize(
    "name", ["docs/start.md", "assets/none", "outputs/a.png", "README.md", "", "/assets"]
)
def test_other_paths_stay(name: str) -> None:
    assert located(name) == Path(name)


def test_at_the_root_names_stay_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_config(Job, None).model == Path("assets/tiny/depth")
    assert depth_folder() == Path("assets/depth")


def test_defaults_of_the_commands_are_found() -> None:
    settings = compose.settings.ComposeSettings(Path("a.png"), Path("b.png"), box=(0, 0, 1, 1))
    assert compose.models.compositor_folder() == ROOT / "assets/tiny/compositor"
    assert depth_folder() == ROOT / "assets/depth"
    assert settings.locator_name == LocatorOptions().locator_name == (ROOT / "assets/tiny/locator").as_posix()
    paint = inpainting.paint.PaintSettings(image=Path("a"), masks=(Path("b"),), prompts=("c",), out=Path("d"))
    assert inpainting.painting.painter_folder(paint) == ROOT / "assets/tiny/inpainter"
    assert "depth" in load_registry()
    name = "inpainting/text_to_image/test/sd_2_inp_rca.yaml"
    assert find_config(Path("models/configs/text_to_image/test/sd_2_inp_rca.yaml")) == ROOT / "configs" / name


@pytest.mark.parametrize(
    "schema", [compose.batch_settings.BatchSettings, compose.batch_settings.DreamBoothSettings]
)
def test_defaults_of_many_composites_have_one_name(schema: type, caplog: pytest.LogCaptureFixture) -> None:
    needed = ["jobs=a"] if schema is compose.batch_settings.BatchSettings else ["objects=a", "backgrounds=b"]
    assert load_config(schema, None, needed).config == ROOT / "configs/inference.yaml"
    with caplog.at_level(logging.WARNING):
        assert load_config(schema, None, [*needed, "defaults=my.yaml"]).config == Path("my.yaml")
    assert "defaults is now config" in caplog.text
