"""The published compositor at reduced width, weights made from key names: the same numbers here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.published_model import PublishedSampler
from cldm import pipeline
from cldm.config import PRESETS, PUBLISHED_SAMPLING, AutoencoderConfig, CompositorSettings, NetworkConfig
from cldm.convert.convert import convert_compositor
from cldm.model import Compositor, load_compositor
from datasets.inputs import Inputs
from datasets.pairs import Pair, build_pair
from datasets.pasteback import stitch
from ldm.denoise import Monitor, denoise, set_steps
from ldm.latents import make_scheduler
from tests.cldm.golden_networks import SIZE, Golden, load_golden
from tests.cldm.released import named_weight
from tests.datasets import published_steps

REDUCED = NetworkConfig(
    size=(128, 128),
    block_channels=(64, 128, 256, 256),
    heads=(2, 4, 8, 8),
    identity_layers=2,
    autoencoder=AutoencoderConfig("kl", (32, 64, 128, 128), 2, 4),
)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden()


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Compositor:
    """A checkpoint in the published layout, through the converter and the loader."""
    weights = {key: named_weight(key, shape) for key, shape in golden.shapes.items() if "." in key}
    folder = tmp_path_factory.mktemp("golden")
    save_file(weights, folder / "reduced.safetensors")
    weights.clear()
    settings = CompositorSettings(folder / "reduced.safetensors", folder / "model")
    convert_compositor("bifrost", settings, REDUCED)
    model, _ = load_compositor(folder / "model")
    (folder / "reduced.safetensors").unlink()
    return model


@torch.inference_mode()
def test_tokens(model: Compositor, golden: Golden) -> None:
    golden.check("context", model.identity(golden.inputs["ref"]))
    golden.check("uncond", model.identity.null(2))


@torch.inference_mode()
def test_control_maps_and_noise(model: Compositor, golden: Golden) -> None:
    conditions = model.conditions(golden.inputs["ref"], golden.inputs["hint"], golden.inputs["depth"])
    for name, branch, embedding in (
        ("detail", model.detail, conditions.detail),
        ("depth", model.depth, conditions.depth),
    ):
        for index, residual in enumerate(branch(embedding, golden.inputs["t"], conditions.tokens)):
            golden.check(f"ctrl_{name}_{index:02d}", residual)
    noise = model(golden.inputs["x"], golden.inputs["t"], conditions)
    golden.check("eps_full", noise)


@torch.inference_mode()
def test_published_formulation(model: Compositor, golden: Golden) -> None:
    """The formulation of the benchmark, on the same networks."""
    sampler = PublishedSampler(model)
    tokens, null = model.identity(golden.inputs["ref"]), model.identity.null(2)
    hints = golden.inputs["hint"], golden.inputs["depth"]
    noise = sampler.predict(golden.inputs["x"], golden.inputs["t"], tokens, hints)
    golden.check("eps_full", noise)
    *_, latents = sampler.sample(golden.inputs["xT"], tokens, null, hints, steps=5)
    golden.check("ddim5_cfg5", latents)


@torch.inference_mode()
def test_autoencoder(model: Compositor, golden: Golden) -> None:
    mode = model.latent_space.raw(golden.inputs["img"])
    golden.check("vae_mean", mode)
    decoded = model.latent_space.vae.decode(golden.small("vae_mean")).sample
    golden.check("vae_decode_mean", decoded)


@torch.inference_mode()
def test_guided_sampling(model: Compositor, golden: Golden) -> None:
    conditions = model.conditions(golden.inputs["ref"], golden.inputs["hint"], golden.inputs["depth"])
    scheduler = make_scheduler("ddim", model.scheduler_config)
    schedule = set_steps(scheduler, 5, 1.0, torch.device("cpu"))
    assert schedule.timesteps.tolist() == sorted(golden.small("ddim_timesteps_5").tolist(), reverse=True)
    both = conditions.with_null(model.identity.null())
    latents = denoise(
        lambda x, t, guided: model(x, t, both),
        golden.inputs["xT"],
        schedule,
        guidance=5.0,
        monitor=Monitor(progress=False),
    )
    golden.check("ddim5_cfg5", latents)


@torch.inference_mode()
def test_other_ways_of_control(model: Compositor, golden: Golden) -> None:
    """No control, the mid block's alone, and the scales of guess mode."""
    conditions = model.conditions(golden.inputs["ref"], golden.inputs["hint"], golden.inputs["depth"])
    residuals = model.residuals(golden.inputs["t"], conditions)
    scaled = [0.7 * 0.825 ** (12 - index) * value for index, value in enumerate(residuals)]
    nothing = [torch.zeros_like(value) for value in residuals]
    for name, (*down, mid) in (
        ("nocontrol", nothing),
        ("midonly", [*nothing[:-1], residuals[-1]]),
        ("guess_scales_0p7", scaled),
    ):
        noise = model.unet(
            golden.inputs["x"],
            golden.inputs["t"],
            encoder_hidden_states=conditions.tokens,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        golden.check(f"eps_{name}", noise)


@torch.inference_mode()
def test_loss(model: Compositor, golden: Golden) -> None:
    scheduler = make_scheduler("ddpm", model.scheduler_config)
    noisy = scheduler.add_noise(golden.inputs["x"], golden.inputs["noise"], golden.inputs["t"])
    conditions = model.conditions(golden.inputs["ref"], golden.inputs["hint"], golden.inputs["depth"])
    loss = torch.nn.functional.mse_loss(model(noisy, golden.inputs["t"], conditions), golden.inputs["noise"])
    golden.check("loss", loss)


@torch.inference_mode()
def test_guided_sampling_in_guess_mode(model: Compositor, golden: Golden) -> None:
    """The unconditional half has no control at all; the other half has all scales."""
    conditions = model.conditions(golden.inputs["ref"], golden.inputs["hint"], golden.inputs["depth"])
    scheduler = make_scheduler("ddim", model.scheduler_config)
    null = model.identity.null(2)

    def noise(x: Tensor, time: Tensor, scales: list[float], tokens: Tensor) -> Tensor:
        parts = [
            scale * value for scale, value in zip(scales, model.residuals(time, conditions), strict=True)
        ]
        return model.unet(
            x,
            time,
            encoder_hidden_states=tokens,
            down_block_additional_residuals=parts[:-1],
            mid_block_additional_residual=parts[-1],
        ).sample

    latents = golden.inputs["xT"]
    for time in set_steps(scheduler, 5, 1.0, torch.device("cpu")).timesteps:
        guided = noise(latents, time, [0.825 ** (12 - index) for index in range(13)], conditions.tokens)
        plain = noise(latents, time, [0.0] * 13, null)
        latents = scheduler.step(plain + 5.0 * (guided - plain), time, latents).prev_sample
    golden.check("ddim5_cfg5_guess", latents)


def small_place() -> tuple[Inputs, tuple[np.ndarray, ...]]:
    """A disc on a floor that comes nearer downwards; its arrays as the published steps read them."""
    rows, columns = np.mgrid[:90, :120]
    background_u8 = np.dstack([rows * 2, columns * 2, rows + columns]).astype(np.uint8)
    floor = (rows / 89).astype(np.float32)
    disc = np.hypot(rows[:60, :60] - 30, columns[:60, :60] - 30) < 24
    relief = (columns[:60, :60] / 59).astype(np.float32)
    inputs = Inputs(
        background_u8[:60, :60], disc, background_u8, floor, (0.3, 0.3, 0.6, 0.7), (0.4, 0.7),
        reference_depth_01=relief,
    )  # fmt: skip
    return inputs, (floor, relief, disc)


def test_sampling_decoding_and_paste_back_in_one_chain(
    model: Compositor, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents are those of the published sampler; image and pasted rectangle follow from them."""
    inputs, arrays = small_place()
    options = replace(PRESETS["bifrost"], size=(SIZE, SIZE), crop_ratio=1.7)
    pair, hints = (
        build_pair(inputs, options),
        {"reference_01": "ref", "detail_pm1": "hint", "depth_01": "depth"},
    )
    for field, name in hints.items():  # which a pair makes of bytes
        monkeypatch.setattr(Pair, field, golden.inputs[name][0])
    monkeypatch.setattr(pipeline, "noise_for", lambda seeds, shape: (golden.inputs["xT"][:1], None))
    sampling, latents = replace(PUBLISHED_SAMPLING, steps=5), []
    monitor = Monitor(on_step=lambda step: latents.append(step.latents), progress=False)
    paint = pipeline.CompositorPipeline(model).paint
    (painted,) = paint(pair, [0], sampling, monitor=monitor, rounded=False)
    expected = golden.small("ddim5_cfg5")[:1]
    torch.testing.assert_close(latents[-1], expected, atol=1e-3, rtol=0)
    with torch.inference_mode():
        decoded = model.latent_space.vae.decode(expected / 0.18215).sample[0]
    expected_levels = (decoded.permute(1, 2, 0) * 127.5 + 127.5).clamp(0, 255).numpy()
    assert np.abs(painted - expected_levels).max() / 255 <= 1e-3
    crop = published_steps.place(*arrays, (0.3, 0.3, 0.3, 0.4), (0.4, 0.7), 1.7).crop
    result_u8 = stitch(pair.geometry, painted, paste="legacy-rect").result_u8
    assert np.array_equal(result_u8, published_steps.pasted(inputs.background_u8, painted, crop))
    assert (result_u8 != inputs.background_u8).any(axis=2).sum() > 1000
    (rounded_u8,) = pipeline.CompositorPipeline(model).decode(expected)
    assert np.abs(rounded_u8 - expected_levels).max() <= 0.501  # of half a level and the chain's rounding
