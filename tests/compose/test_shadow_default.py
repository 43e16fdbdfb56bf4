"""Which composites have a shadow: by default, in recipes and jobs of before, as published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import compose, compose_layers, load_models
from compose.batch import dreambooth_jobs
from compose.batch_settings import DreamBoothSettings
from compose.pipeline import ignored_options
from compose.recipe import sampling_of, settings_of_recipe
from compose.settings import CAST, CONTACT, SHADOWS, ComposeSettings
from compose.verbs import JobNetworks
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.compose.test_shadow import BOX, H, W, composed, settings_of


def test_contact_is_what_there_is_without_the_setting() -> None:
    plain = ComposeSettings(**{k: v for k, v in vars(settings_of()).items() if k != "shadow"})
    assert plain.shadow == plain.shadow_there == CONTACT
    result, again = composed(CONTACT), compose(plain, load_models(plain), progress=False)
    assert result.recipe["settings"]["shadow"] == again.recipe["settings"]["shadow"] == CONTACT
    assert np.array_equal(result.images_u8[0], again.images_u8[0])
    assert np.array_equal(result.edit_mask, again.edit_mask)
    assert "shadow" not in result.recipe["weights"]


def image_without_the_setting(path: Path, **more: Any) -> Path:
    """A composite of an earlier version: no shadow, and a recipe that knows no such setting."""
    settings = settings_of("off", **more)
    for name in ("background", "background_depth", "object", "object_mask"):
        file = path.with_name(f"{name}.png")
        file.write_bytes(getattr(settings, name).read_bytes())
        settings = replace(settings, **{name: file})
    result = compose(settings, load_models(settings), progress=False)
    del result.recipe["settings"]["shadow"]
    result.save(0, path)
    return path


@pytest.mark.parametrize(
    "more",
    [{}, {"mode": "replace", "erase": "nothing", "eraser": "opencv"}, {"painter": "auto", "steps": 1}],
    ids=["place", "replace", "bifrost"],
)
def test_a_recipe_that_names_no_shadow_has_none(more: dict[str, Any], tmp_path: Path) -> None:
    image = image_without_the_setting(tmp_path / "a.png", **more)
    assert settings_of_recipe(image)[0].shadow == "off"
    assert run_app(build_app, ["replay", str(image), "--out", str(tmp_path / "b.png")]) == 0
    before, after = (read_image(tmp_path / f"{name}.png").rgb_u8 for name in "ab")
    assert np.array_equal(before, after)
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["recipe"]["settings"]["shadow"] == "off"
    assert "shadow" not in report


@pytest.mark.parametrize("kind", ["off", CONTACT, None])
def test_a_job_records_the_shadow_and_an_earlier_one_had_none(kind: str | None, tmp_path: Path) -> None:
    given = settings_of()
    files = {
        name: tmp_path / f"{name}.png" for name in ("background", "background_depth", "object", "object_mask")
    }
    for name, file in files.items():
        file.write_bytes(getattr(given, name).read_bytes())
    paths = {name: str(file) for name, file in files.items()}
    thing = {name: paths.pop(name) for name in ("object", "object_mask")}
    job = {
        **paths,
        "painter": "paste",
        "device": "cpu",
        "layers": [{**thing, "name": "block", "box": list(BOX)}],
    }
    result = compose_layers(job if kind is None else {**job, "shadow": kind}, JobNetworks())
    assert result.recipe["job"]["shadow"] == (kind or CONTACT)
    assert ("shadow" in result.report["layers"][0]) == (kind != "off")
    if kind == "off":  # as the first version of jobs wrote it
        del result.recipe["job"]["shadow"]
    result.save(tmp_path / "a.png")
    assert run_app(build_app, ["replay", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png")]) == 0
    before, after = (read_image(tmp_path / f"{name}.png").rgb_u8 for name in "ab")
    assert np.array_equal(before, after)


@pytest.mark.parametrize("compat", ["bifrost", "anydoor"])
def test_published_systems_have_none(compat: str) -> None:
    settings = settings_of(CONTACT, painter="auto", compat=compat, steps=1)
    assert settings.shadow_there == "off"
    result = compose(settings, load_models(settings), progress=False)
    assert result.shadow_mask is None
    assert "shadow" not in result.report


def test_the_test_set_of_dreambooth_has_none_unless_its_settings_say_so(tmp_path: Path) -> None:
    given = settings_of()
    objects, grounds = tmp_path / "objects", tmp_path / "grounds"
    (objects / "dog").mkdir(parents=True)
    grounds.mkdir()
    (objects / "dog/0.png").write_bytes(given.object.read_bytes())
    (grounds / "a_GT.png").write_bytes(given.background.read_bytes())
    write_png(grounds / "a_mask.png", np.full((H, W), 255, np.uint8))
    for text, kind in (("seed: 1", "off"), ("shadow: contact", CONTACT), ("shadow: cast", CAST)):
        (tmp_path / "own.yaml").write_text(text)
        settings = DreamBoothSettings(objects=objects, backgrounds=grounds, config=tmp_path / "own.yaml")
        assert [job.settings.shadow for job in dreambooth_jobs(settings)] == [kind]


@pytest.mark.parametrize("given", ["", "soft", "Contact", "on", "none"])
def test_other_values_are_refused_with_those_that_are_allowed(given: str) -> None:
    with pytest.raises(ValueError, match="shadow") as error:
        settings_of(given)
    assert all(kind in str(error.value) for kind in SHADOWS)


def test_it_does_not_go_with_the_published_system() -> None:
    with pytest.raises(ValueError, match="--compat composes as published, without --shadow cast"):
        settings_of(CAST, painter="auto", compat="bifrost")


@pytest.mark.parametrize("mode", ["id-transfer", "inpaint", "draw"])
def test_a_mode_that_keeps_the_depth_says_that_there_is_none(mode: str) -> None:
    mask = np.zeros((H, W), bool)
    mask[40:70, 40:80] = True
    settings = settings_of(CAST, mode=mode, target_mask=mask, eraser="opencv")
    notes = ignored_options(settings, sampling_of(settings, load_models(settings))[0])
    assert f"--shadow has no effect: mode {mode} keeps the depth of the background" in notes
    settings = replace(settings, shadow=CONTACT)  # nobody may have asked for that
    assert not ignored_options(settings, sampling_of(settings, load_models(settings))[0])
    assert compose(settings, load_models(settings), progress=False).shadow_mask is None
