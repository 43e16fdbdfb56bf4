"""`compose` from Python: plain values in and out, nothing written, every choice visible in the result."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from cldm.config import Sampling
from compose import ComposeSettings, compose, load_models
from compose.models import Models
from compose.pipeline import ignored_options
from ldm.denoise import Cancelled, Step
from ldm.latents import scheduler_class
from ldm.settings.choices import SCHEDULERS
from tests.images import Case, forbid_loading, room


def settings_of(case: Case, **changes: object) -> ComposeSettings:
    """The settings of the case's command line."""
    plain = {
        "background": case.folder / "room.png", "background_depth": case.folder / "depth.png",
        "object": case.folder / "thing.png", "object_mask": case.folder / "mask.png",
        "box": (0.3, 0.2, 0.7, 0.9), "depth": (0.6,), "model": case.model, "depth_model": case.depth_model,
    }  # fmt: skip
    return ComposeSettings(**{**plain, **changes})  # type: ignore[arg-type]


def test_the_result_is_complete_and_nothing_is_written(case: Case) -> None:
    before = case.files()
    settings = settings_of(case, num_samples=2)
    result = compose(settings, load_models(settings), progress=False)
    assert case.files() == before
    assert [image.shape for image in result.images_u8] == [(96, 128, 3)] * 2
    assert [image.shape for image in result.painted_u8] == [(32, 32, 3)] * 2
    assert (result.edit_mask.shape, result.edit_mask.dtype) == ((96, 128), bool)
    assert result.images[0].alpha_u8 is None
    for image in result.images_u8:
        assert np.array_equal(image[~result.edit_mask], room()[~result.edit_mask])
    assert json.loads(json.dumps(result.recipe)) == result.recipe
    assert json.loads(json.dumps(result.report)) == result.report


def test_the_command_line_adds_nothing_to_the_pixels(case: Case) -> None:
    settings = settings_of(case, seed=4)
    result = compose(settings, load_models(settings), progress=False)
    assert case.run("--seed", "4") == 0
    assert np.array_equal(case.unchanged_outside(room()), result.images_u8[0])


def test_every_step_is_seen_and_can_be_the_last(case: Case) -> None:
    settings, steps = settings_of(case, steps=4, strength=1.0), []
    models = load_models(settings)
    compose(settings, models, on_step=steps.append, progress=False)
    assert [(step.index, step.total) for step in steps] == [(index, 4) for index in range(4)]
    seen: list[Step] = []
    with pytest.raises(Cancelled, match="after 2 of 4 steps"):
        compose(settings, models, on_step=seen.append, cancelled=lambda: len(seen) == 2, progress=False)

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(settings, models, on_step=stop, progress=False)
    again = compose(settings, models, progress=False)  # an interrupted model is as good as new
    assert np.array_equal(again.images_u8[0], compose(settings, models, progress=False).images_u8[0])


def test_networks_are_loaded_once_and_only_when_needed(case: Case, monkeypatch) -> None:
    import compose.models as module

    calls: list[str] = []
    real = module.load_compositor
    monkeypatch.setattr(module, "load_compositor", lambda *args: (calls.append("compositor"), real(*args))[1])
    load = module.DepthEstimator.load
    monkeypatch.setattr(
        module.DepthEstimator,
        "load",
        lambda *args, **kwargs: (calls.append("depth"), load(*args, **kwargs))[1],
    )
    settings = settings_of(case)
    models = load_models(settings)
    assert calls == []
    compose(settings, models, progress=False)
    assert calls == ["compositor"]
    for _ in range(2):
        result = compose(settings_of(case, background_depth=None), models, progress=False)
    assert calls == ["compositor", "depth"]
    assert result.report["background_depth"] == "estimated"
    assert set(result.recipe["weights"]) == {"model", "depth_model"}


def test_what_the_user_can_mend_is_found_before_any_weights(case: Case, monkeypatch) -> None:
    forbid_loading(monkeypatch)
    settings = settings_of(case, box=(0.02, 0.3, 0.2, 0.8), depth=(0.1,))
    with pytest.raises(ValueError, match="hide the object completely"):
        compose(settings, load_models(settings), progress=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"box": None}, "--box"),
        ({"box": (0.5, 0.1, 0.4, 0.2)}, "inverted"),
        ({"depth": (0.5, 0.4)}, "far <= near"),
        ({"depth": ()}, "got nothing"),
        ({"mode": "draw"}, "--target-mask"),
        ({"scheduler": "x"}, "unknown scheduler 'x'"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_settings_refuse_nonsense_where_they_are_made(case: Case, changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        settings_of(case, **changes)


def test_what_has_no_effect_is_named(case: Case) -> None:
    target = case.folder / "target.png"
    noise, paste = Sampling(init="noise"), Sampling(init="paste")
    assert ignored_options(settings_of(case, strength=0.5), paste) == []
    (sentence,) = ignored_options(settings_of(case, strength=0.5), noise)
    assert "--strength" in sentence
    (sentence,) = ignored_options(settings_of(case, mode="draw", target_mask=target), noise)
    assert "mode draw keeps the depth" in sentence
    assert ignored_options(settings_of(case, mode="draw", target_mask=target, depth=None), noise) == []
    assert ignored_options(settings_of(case, mode="replace", target_mask=target), noise) == []


def test_every_short_scheduler_name_paints_or_is_refused(case: Case) -> None:
    """The model of the case has zero terminal SNR, which four samplers of diffusers cannot keep."""
    models: Models | None = None
    for name in [*SCHEDULERS, "LCMScheduler"]:
        settings = settings_of(case, scheduler=name, steps=2)
        models = models or load_models(settings)
        if name in ("pndm", "lms", "heun", "deis"):
            with pytest.raises(ValueError, match=f"scheduler '{name}' cannot keep the zero terminal SNR"):
                compose(settings, models, progress=False)
            continue
        result = compose(settings, models, progress=False)
        assert result.recipe["sampling"]["scheduler"] == name
        assert result.report["drift"][0]["changed_outside"] == 0


def test_a_scheduler_of_other_models_is_refused() -> None:
    for name in ("VQDiffusionScheduler", "FlowMatchEulerDiscreteScheduler", "RePaintScheduler"):
        with pytest.raises(ValueError, match=f"scheduler {name} is for other models; use one of ddim"):
            scheduler_class(name)
    if importlib.util.find_spec("torchsde") is None:
        with pytest.raises(ValueError, match="DPMSolverSDEScheduler.*torchsde"):
            scheduler_class("DPMSolverSDEScheduler")


def test_the_object_fills_its_box_and_its_depth_decides_what_hides_it(case: Case) -> None:
    """The nearer the object, the more of it shows; a box half behind the post shows half at most."""
    behind_post = {"box": (0.0, 0.2, 0.5, 0.9)}
    models = load_models(settings_of(case))
    shown = []
    for depth in (0.45, 0.6, 0.75, 1.0):
        settings = settings_of(case, **behind_post, depth=(depth - 0.02, depth))
        shown.append(compose(settings, models, progress=False).report["visible_fraction"])
    assert shown == sorted(shown)
    assert shown[-1] == 1
    assert 0 < shown[0] < shown[2] < 0.6


def test_settings_are_one_flat_list_of_plain_values() -> None:
    """So that a page, a batch or a recipe can hold them."""
    for field in dataclasses.fields(ComposeSettings):
        assert field.metadata["help"], field.name
        assert not dataclasses.is_dataclass(field.default), field.name
    assert Path("room.png") == ComposeSettings(Path("room.png"), Path("a.png"), box=(0, 0, 1, 1)).background
