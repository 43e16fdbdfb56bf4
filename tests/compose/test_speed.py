"""Which speed a composite has: the default, what others say, and that its recipe says it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cldm.config import SPEEDS, CompositorConfig, Sampling, load_compositor_config
from compose import compose, load_models
from compose.recipe import check_unchanged, sampling_of, settings_of_recipe
from compose.settings import ComposeSettings
from ldm.files import ROOT
from ldm.result import RECIPE_CHUNK, read_recipe
from ldm.settings.config import load_config
from ldm.settings.schema import flat_settings

TENT = ROOT / "assets/examples/tent"
JOB: dict[str, Any] = {
    "background": TENT / "room.png", "object": TENT / "object.png", "box": (0.3, 0.2, 0.5, 0.6),
    "background_depth": TENT / "room_depth.png",
}  # fmt: skip
SHORTCUTS: dict[str, Any] = {  # two values each that no speed has
    "control_evaluations": (0, 7), "guidance_interval": ((0.0, 0.5), (0.2, 0.8)), "guidance_every": (5, 3),
    "reuse_every": (5, 4), "reuse_layers": (3, 2), "full_last": (5, 2),
}  # fmt: skip
EARLIER = {  # what the speeds were before they had `full_last`
    "exact": {"control_evaluations": 0, "guidance_every": 1, "reuse_every": 1, "reuse_layers": 0},
    "balanced": {"control_evaluations": 4, "guidance_every": 2, "reuse_every": 2, "reuse_layers": 0},
    "fast": {"control_evaluations": 3, "guidance_every": 6, "reuse_every": 3, "reuse_layers": 1},
}


def shortcuts(sampling: Sampling, **given: Any) -> dict[str, Any]:
    models: Any = SimpleNamespace(config=CompositorConfig(sampling=sampling))
    found = sampling_of(ComposeSettings(**JOB, **given), models)[0]
    return {key: getattr(found, key) for key in SPEEDS["fast"]}


def named(speed: str | None) -> dict[str, Any]:
    of_speed = SPEEDS[speed] if speed else {}
    return {key: of_speed.get(key, getattr(Sampling(), key)) for key in SPEEDS["fast"]}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 20, 50])
def test_balanced_unless_another_is_asked_for(steps: int, guidance: float) -> None:
    sampling = Sampling(steps=steps, guidance=guidance)
    assert shortcuts(sampling) == named("balanced")
    for speed in SPEEDS:
        assert shortcuts(sampling, speed=speed) == named(speed)


@pytest.mark.parametrize("compat", ["bifrost", "anydoor"])
def test_published_systems_run_everything(compat: str) -> None:
    assert shortcuts(Sampling(), compat=compat) == named(None)
    assert shortcuts(Sampling(), compat=compat, speed="fast") == named("fast")


@pytest.mark.parametrize(
    "own",
    [{"reuse_every": 5}, {"control_evaluations": 9}, {"guidance_every": 3}, {"reuse_layers": 1},
     {"full_last": 1}],
)  # fmt: skip
def test_a_model_that_says_what_runs_less_keeps_it(own: dict[str, Any]) -> None:
    assert shortcuts(Sampling(**own)) == {**named(None), **own}
    assert shortcuts(Sampling(**own), speed="balanced") == {**named(None), **own, **SPEEDS["balanced"]}


def test_a_model_that_says_nothing_of_the_last_steps_has_three_of_them() -> None:
    folder = ROOT / "assets/tiny/compositor"
    assert "full_last" not in (folder / "compositor.json").read_text()
    assert load_compositor_config(folder).sampling.full_last == 3


@pytest.mark.parametrize("speed", [None, *SPEEDS])
@pytest.mark.parametrize("key", SHORTCUTS)
def test_an_option_of_its_own_wins_over_the_speed(key: str, speed: str | None) -> None:
    for value in SHORTCUTS[key]:
        config = CompositorConfig(sampling=Sampling(**{key: SHORTCUTS[key][0]}))
        models: Any = SimpleNamespace(config=config)
        found = sampling_of(ComposeSettings(**JOB, speed=speed, **{key: value}), models)[0]
        assert getattr(found, key) == value
        others = {name: getattr(found, name) for name in SPEEDS["fast"] if name != key}
        usual = speed or config.sampling.usual_speed
        assert others == {name: named(usual)[name] for name in others}


@pytest.mark.parametrize("key", SHORTCUTS)
def test_the_options_have_the_range_of_the_model_s_own(key: str, tmp_path: Path) -> None:
    rule = flat_settings(Sampling)[key][0].metadata
    for wrong in (rule["low"] - 1, rule["high"] + 1):
        value: Any = (wrong, wrong) if key == "guidance_interval" else wrong
        with pytest.raises(
            ValueError, match=f"{key} must be in .{rule['low']}, {rule['high']}., got {wrong}"
        ):
            ComposeSettings(**JOB, **{key: value})
    value = SHORTCUTS[key][1]
    told = {"background": "a.png", "object": "b.png", "box": [0, 0, 1, 1], key: value}
    (tmp_path / "a.yaml").write_text(json.dumps(told))
    assert getattr(load_config(ComposeSettings, tmp_path / "a.yaml"), key) == value
    (tmp_path / "a.yaml").write_text(json.dumps({**told, key: None}))
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    assert getattr(load_config(ComposeSettings, tmp_path / "a.yaml", [f"{key}={text}"]), key) == value


def painted(out: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    settings = ComposeSettings(**JOB, **more)
    result = compose(settings, load_models(settings), progress=False)
    result.save(0, out)
    return result, read_recipe(out)


@pytest.mark.parametrize(("speed", "said"), [(None, "balanced"), ("exact", "exact"), ("fast", "fast")])
def test_the_recipe_says_the_speed_and_replays(
    tmp_path: Path, speed: str | None, said: str, small_compositor: Path
) -> None:
    result, recipe = painted(tmp_path / "a.png", model=small_compositor, speed=speed, steps=6, guidance=2.0)
    assert recipe["settings"]["speed"] == said
    assert {key: recipe["sampling"][key] for key in SPEEDS["fast"]} == named(said)
    settings, _ = settings_of_recipe(tmp_path / "a.png")
    assert settings.speed == said
    again = compose(settings, load_models(settings), progress=False)
    assert (again.images_u8[0] == result.images_u8[0]).all()


def with_recipe(image: Path, recipe: dict[str, Any]) -> Path:
    """The same pixels with another recipe."""
    text, old = PngInfo(), image.with_name("old.png")
    text.add_text(RECIPE_CHUNK, json.dumps(recipe))
    Image.open(image).save(old, pnginfo=text)
    return old


@pytest.mark.parametrize("compat", [None, "bifrost"])
@pytest.mark.parametrize("speed", EARLIER)
@pytest.mark.parametrize("steps", [6, 22])
def test_an_image_of_an_earlier_speed_is_replayed_exactly(
    tmp_path: Path, speed: str, steps: int, compat: str | None, small_compositor: Path
) -> None:
    if compat and (speed != "exact" or steps > 6):
        pytest.skip("the default was exact")
    given = {**EARLIER[speed], "full_last": 3}
    result, recipe = painted(
        tmp_path / "a.png", steps=steps, guidance=2.0, init="noise", speed=speed, compat=compat,
        model=small_compositor, **given,
    )  # fmt: skip
    for key in SHORTCUTS:
        del recipe["settings"][key]
    del recipe["sampling"]["full_last"]
    recipes = [recipe]
    if speed == "exact":  # 0.1.0 had neither the option nor the keys
        older = {part: dict(recipe[part]) for part in ("settings", "sampling")}
        del older["settings"]["speed"]
        for key in EARLIER[speed]:
            del older["sampling"][key]
        recipes.append({**recipe, **older})
    for old in recipes:
        image = with_recipe(tmp_path / "a.png", old)
        settings, _ = settings_of_recipe(image)
        assert settings.speed == speed
        models = load_models(settings)
        found = sampling_of(settings, models)[0]
        assert {key: getattr(found, key) for key in given} == given
        check_unchanged(image, old, settings, models)
        again = compose(settings, models, progress=False)
        assert (again.images_u8[0] == result.images_u8[0]).all()


@pytest.mark.parametrize("more", [{}, {"speed": "fast"}, {"reuse_every": 1}, {"compat": "bifrost"}])
def test_a_new_recipe_gives_the_settings_and_the_bytes_again(
    tmp_path: Path, more: dict[str, Any], small_compositor: Path
) -> None:
    _, recipe = painted(tmp_path / "a.png", model=small_compositor, steps=4, **more)
    assert recipe["settings"]["speed"] == (None if "compat" in more else more.get("speed", "balanced"))
    settings, _ = settings_of_recipe(tmp_path / "a.png")
    asked = {key: getattr(settings, key) for key in SHORTCUTS if getattr(settings, key) is not None}
    assert asked == {key: value for key, value in more.items() if key in SHORTCUTS}
    compose(settings, load_models(settings), progress=False).save(0, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_default_changes_nothing_of_an_image_of_one_step(tmp_path: Path) -> None:
    """The small model's own setting."""
    first, other = (painted(tmp_path / f"{speed}.png", speed=speed)[0] for speed in (None, "exact"))
    assert first.recipe["sampling"]["steps"] == 1
    assert (first.images_u8[0] == other.images_u8[0]).all()
