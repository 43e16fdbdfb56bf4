"""Which speed a composite has: the default, what others say, and that its recipe says it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cldm.config import SPEEDS, CompositorConfig, Sampling
from compose import compose, load_models
from compose.recipe import sampling_of, settings_of_recipe
from compose.settings import ComposeSettings
from ldm.files import ROOT
from ldm.result import RECIPE_CHUNK, read_recipe

TENT = ROOT / "assets/examples/tent"
JOB: dict[str, Any] = {
    "background": TENT / "room.png", "object": TENT / "object.png", "box": (0.3, 0.2, 0.5, 0.6),
    "background_depth": TENT / "room_depth.png",
}  # fmt: skip


def shortcuts(sampling: Sampling, **given: Any) -> dict[str, Any]:
    models: Any = SimpleNamespace(config=CompositorConfig(sampling=sampling))
    found = sampling_of(ComposeSettings(**JOB, **given), models)[0]
    return {key: getattr(found, key) for key in SPEEDS["fast"]}


def named(speed: str) -> dict[str, Any]:
    return {key: SPEEDS[speed].get(key, getattr(Sampling(), key)) for key in SPEEDS["fast"]}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 20, 50])
def test_balanced_unless_another_is_asked_for(steps: int, guidance: float) -> None:
    sampling = Sampling(steps=steps, guidance=guidance)
    assert shortcuts(sampling) == named("balanced")
    for speed in SPEEDS:
        assert shortcuts(sampling, speed=speed) == named(speed)


@pytest.mark.parametrize("compat", ["bifrost", "anydoor"])
def test_published_systems_run_everything(compat: str) -> None:
    assert shortcuts(Sampling(), compat=compat) == named("exact")
    assert shortcuts(Sampling(), compat=compat, speed="fast") == named("fast")


@pytest.mark.parametrize(
    "own", [{"reuse_every": 5}, {"control_evaluations": 9}, {"guidance_every": 3}, {"reuse_layers": 1}]
)
def test_a_model_that_says_what_runs_less_keeps_it(own: dict[str, Any]) -> None:
    assert shortcuts(Sampling(**own)) == {**named("exact"), **own}
    assert shortcuts(Sampling(**own), speed="balanced") == {**named("exact"), **own, **SPEEDS["balanced"]}


def painted(out: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    settings = ComposeSettings(**JOB, **more)
    result = compose(settings, load_models(settings), progress=False)
    result.save(0, out)
    return result, read_recipe(out)


@pytest.mark.parametrize(("speed", "said"), [(None, "balanced"), ("exact", "exact"), ("fast", "fast")])
def test_the_recipe_says_the_speed_and_replays(tmp_path: Path, speed: str | None, said: str) -> None:
    result, recipe = painted(tmp_path / "a.png", speed=speed, steps=6, guidance=2.0)
    assert recipe["settings"]["speed"] == said
    assert {key: recipe["sampling"][key] for key in SPEEDS["fast"]} == named(said)
    settings, _ = settings_of_recipe(tmp_path / "a.png")
    assert settings.speed == said
    again = compose(settings, load_models(settings), progress=False)
    assert (again.images_u8[0] == result.images_u8[0]).all()


def test_a_recipe_without_a_speed_is_replayed_exactly(tmp_path: Path) -> None:
    """It was written when everything ran."""
    result, recipe = painted(tmp_path / "a.png", speed="exact", steps=4)
    del recipe["settings"]["speed"]
    text = PngInfo()
    text.add_text(RECIPE_CHUNK, json.dumps(recipe))
    Image.open(tmp_path / "a.png").save(tmp_path / "old.png", pnginfo=text)
    settings, _ = settings_of_recipe(tmp_path / "old.png")
    assert settings.speed == "exact"
    assert (
        compose(settings, load_models(settings), progress=False).images_u8[0] == result.images_u8[0]
    ).all()


def test_the_default_changes_nothing_of_an_image_of_one_step(tmp_path: Path) -> None:
    """The small model's own setting."""
    first, other = (painted(tmp_path / f"{speed}.png", speed=speed)[0] for speed in (None, "exact"))
    assert first.recipe["sampling"]["steps"] == 1
    assert (first.images_u8[0] == other.images_u8[0]).all()
