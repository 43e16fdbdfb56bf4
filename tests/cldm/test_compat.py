"""Presets of the published systems: every switch, the step rule, the pasted rectangle, and the way back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from cldm.config import PRESETS, Sampling
from compose import ComposeSettings, compose, load_models
from compose.models import Models
from compose.pipeline import ignored_options
from datasets.inputs import PUBLISHED_INFERENCE
from ldm.denoise import set_steps
from ldm.images import read_image
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.cldm.small import SMALL_CONFIG
from tests.images import Case

BOX = (0.3, 0.2, 0.7, 0.9)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_pre_processing_at_the_models_size(name: str) -> None:
    config = SMALL_CONFIG.with_compat(name, seed=3)
    own = {"size", "reference_size", "crop_ratio", "augment", "hf_mode"}
    if name == "anydoor":  # the box, in front of everything, with the whole detail map
        own |= {"mask_level", "collage", "occlusion", "region_of"}
    for field in PUBLISHED_INFERENCE.__dataclass_fields__:
        if field not in own:
            assert getattr(config.pair, field) == getattr(PUBLISHED_INFERENCE, field), field
    assert config.pair.size == SMALL_CONFIG.pair.size
    assert (config.sampling.scheduler, config.sampling.steps, config.sampling.guidance) == ("ddim", 50, 5.0)
    assert not config.sampling.reimpose
    assert config.pair.hf_mode == {"bifrost": "zero", "anydoor": "color"}[name]
    ratios = [SMALL_CONFIG.with_compat(name, seed).pair.crop_ratio for seed in range(200)]
    assert (min(ratios), max(ratios)) == (1.5, 2.9)
    assert SMALL_CONFIG.with_compat(name, 7) == SMALL_CONFIG.with_compat(name, 7)


@pytest.mark.parametrize("steps", [7, 20, 30, 50])
def test_published_steps_are_those_of_the_original_code(steps: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing", clip_sample=False)
    found = set_steps(scheduler, steps, 1.0, CPU, "published").timesteps
    original = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    assert found.tolist() == original[::-1].tolist()
    sample, gap = torch.ones(1, 1, 2, 2), 1000 // steps
    after = scheduler.step(torch.zeros_like(sample), found[0], sample).prev_sample
    kept = scheduler.alphas_cumprod
    assert torch.allclose(after, sample * (kept[found[0] - gap] / kept[found[0]]).sqrt())


def test_the_step_rule_refuses_what_it_does_not_fit() -> None:
    with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
        set_steps(EulerDiscreteScheduler(), 10, 1.0, CPU, "published")
    with pytest.raises(ValueError, match="beyond 1000 timesteps"):
        set_steps(DDIMScheduler(), 999, 1.0, CPU, "published")


def trained_so(models: Models, name: str) -> Models:
    """As if the model had been trained on what a preset shows it."""
    pair = replace(models.config.pair, hf_mode=PRESETS[name].hf_mode)
    return replace(models, config=replace(models.config, pair=pair))


@pytest.mark.parametrize("name", PRESETS)
def test_a_compatible_composite_pastes_its_rectangle_and_replays(
    case: Case, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ComposeSettings(
        background=case.folder / "room.png", background_depth=case.folder / "depth.png",
        object=case.folder / "thing.png", object_mask=case.folder / "mask.png", box=BOX,
        depth=(0.3, 0.5), model=case.model, depth_model=case.depth_model, compat=name, steps=4,
    )  # fmt: skip
    models = load_models(settings)
    result = compose(settings, models, progress=False)
    rows, columns = np.flatnonzero(result.edit_mask.any(1)), np.flatnonzero(result.edit_mask.any(0))
    box = result.edit_mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.all()
    background_u8 = read_image(case.folder / "room.png").rgb_u8
    assert np.array_equal(result.images_u8[0][~result.edit_mask], background_u8[~result.edit_mask])
    repainted = result.report["drift"][0]["changed_outside"]
    assert (repainted > 0) == (name == "bifrost"), "the rectangle goes over what is nearer, and that is told"
    assert result.recipe["pair"]["resample"] == "legacy"
    assert result.recipe["sampling"]["step_rule"] == "published"
    assert (result.report["visible_fraction"] > 0.99) == (name == "anydoor"), "AnyDoor knows no occlusion"
    plain = compose(replace(settings, compat=None), models, progress=False)
    assert not np.array_equal(plain.images_u8[0], result.images_u8[0])
    warned = (
        f"--compat {name} shows the model hf_mode {result.recipe['pair']['hf_mode']}, but it was trained with"
    )
    assert caplog.text.count(warned) == 1
    caplog.clear()
    for chosen, suits in ((replace(settings, compat=None), models), (settings, trained_so(models, name))):
        compose(chosen, suits, progress=False)
        assert "expect a poor object" not in caplog.text
    assert case.run("--compat", name, "--steps", "4") == 0
    assert run_app(build_app, ["replay", str(case.out)]) == 0
    replayed_u8 = read_image(case.out.with_name(f"{case.out.stem}_replay.png")).rgb_u8
    assert np.array_equal(read_image(case.out).rgb_u8, replayed_u8)


def test_what_has_no_effect_is_named(case: Case) -> None:
    settings = ComposeSettings(case.folder / "room.png", case.folder / "thing.png", box=BOX, compat="bifrost")
    assert any("--detail has no effect" in one for one in ignored_options(settings, Sampling(detail=0.5)))
