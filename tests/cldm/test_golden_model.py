"""The published compositor at reduced width, weights made from key names: our networks give the same numbers.

Needs the golden tensors in the folder BIFROST_TEST_DATA; architecture and stock equality are tested without.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cldm.config import AutoencoderConfig, CompositorSettings, NetworkConfig
from cldm.convert.convert import convert_compositor
from cldm.model import Compositor
from cldm.pretrained import load_compositor
from ldm.denoise import Monitor, denoise, set_steps
from ldm.latents import make_scheduler
from tests.cldm.released import named_weight

REDUCED = NetworkConfig(
    size=(128, 128),
    block_channels=(64, 128, 256, 256),
    heads=(2, 4, 8, 8),
    identity_layers=2,
    autoencoder=AutoencoderConfig("kl", (32, 64, 128, 128), 2, 4),
)


def golden_folder() -> Path:
    folder = Path(os.environ.get("BIFROST_TEST_DATA", "")) / "golden"
    if not os.environ.get("BIFROST_TEST_DATA") or not folder.is_dir():
        pytest.skip("needs golden tensors in $BIFROST_TEST_DATA/golden")
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(golden_folder() / "compositor_tiny.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Compositor:
    """A checkpoint in the published layout, through the converter and the loader."""
    manifest = json.loads((golden_folder() / "tiny_manifest.json").read_text())
    weights = {key: named_weight(key, shape) for key, (shape, _) in manifest.items() if "." in key}
    folder = tmp_path_factory.mktemp("golden")
    save_file(weights, folder / "reduced.safetensors")
    weights.clear()
    settings = CompositorSettings(folder / "reduced.safetensors", folder / "model")
    convert_compositor("bifrost", settings, REDUCED)
    model, _ = load_compositor(folder / "model")
    (folder / "reduced.safetensors").unlink()
    return model


@torch.inference_mode()
def test_tokens(model: Compositor, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(model.identity(golden["in_ref"]), golden["out_context"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.identity.null(2), golden["out_uncond"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_control_maps_and_noise(model: Compositor, golden: dict[str, Tensor]) -> None:
    conditions = model.conditions(golden["in_ref"], golden["in_hint"], golden["in_depth"])
    for name, branch, embedding in (
        ("detail", model.detail, conditions.detail),
        ("depth", model.depth, conditions.depth),
    ):
        for index, residual in enumerate(branch(embedding, golden["in_t"], conditions.tokens)):
            torch.testing.assert_close(residual, golden[f"out_ctrl_{name}_{index:02d}"], atol=1e-4, rtol=0)
    noise = model(golden["in_x"], golden["in_t"], conditions)
    torch.testing.assert_close(noise, golden["out_eps_full"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_autoencoder(model: Compositor, golden: dict[str, Tensor]) -> None:
    mode = model.latent_space.raw(golden["in_img"])
    torch.testing.assert_close(mode, golden["out_vae_mean"], atol=1e-4, rtol=0)
    decoded = model.latent_space.vae.decode(golden["out_vae_mean"]).sample
    torch.testing.assert_close(decoded, golden["out_vae_decode_mean"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_guided_sampling(model: Compositor, golden: dict[str, Tensor]) -> None:
    conditions = model.conditions(golden["in_ref"], golden["in_hint"], golden["in_depth"])
    scheduler = make_scheduler("ddim", model.scheduler_config)
    schedule = set_steps(scheduler, 5, 1.0, torch.device("cpu"))
    assert schedule.timesteps.tolist() == sorted(golden["out_ddim_timesteps_5"].tolist(), reverse=True)
    both = conditions.with_null(model.identity.null())
    latents = denoise(
        lambda x, t, guided: model(x, t, both),
        golden["in_xT"],
        schedule,
        guidance=5.0,
        monitor=Monitor(progress=False),
    )
    torch.testing.assert_close(latents, golden["out_ddim5_cfg5"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_other_ways_of_control(model: Compositor, golden: dict[str, Tensor]) -> None:
    """No control, the mid block's alone, and the scales of guess mode."""
    conditions = model.conditions(golden["in_ref"], golden["in_hint"], golden["in_depth"])
    residuals = model.residuals(golden["in_t"], conditions)
    scaled = [0.7 * 0.825 ** (12 - index) * value for index, value in enumerate(residuals)]
    nothing = [torch.zeros_like(value) for value in residuals]
    for name, (*down, mid) in (
        ("nocontrol", nothing),
        ("midonly", [*nothing[:-1], residuals[-1]]),
        ("guess_scales_0p7", scaled),
    ):
        noise = model.unet(
            golden["in_x"],
            golden["in_t"],
            encoder_hidden_states=conditions.tokens,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        torch.testing.assert_close(noise, golden[f"out_eps_{name}"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_loss(model: Compositor, golden: dict[str, Tensor]) -> None:
    scheduler = make_scheduler("ddpm", model.scheduler_config)
    noisy = scheduler.add_noise(golden["in_x"], golden["in_noise"], golden["in_t"])
    conditions = model.conditions(golden["in_ref"], golden["in_hint"], golden["in_depth"])
    loss = torch.nn.functional.mse_loss(model(noisy, golden["in_t"], conditions), golden["in_noise"])
    torch.testing.assert_close(loss, golden["out_loss"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_guided_sampling_in_guess_mode(model: Compositor, golden: dict[str, Tensor]) -> None:
    """The unconditional half has no control at all; the other half has all scales."""
    conditions = model.conditions(golden["in_ref"], golden["in_hint"], golden["in_depth"])
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

    latents = golden["in_xT"]
    for time in set_steps(scheduler, 5, 1.0, torch.device("cpu")).timesteps:
        guided = noise(latents, time, [0.825 ** (12 - index) for index in range(13)], conditions.tokens)
        plain = noise(latents, time, [0.0] * 13, null)
        latents = scheduler.step(plain + 5.0 * (guided - plain), time, latents).prev_sample
    torch.testing.assert_close(latents, golden["out_ddim5_cfg5_guess"], atol=1e-4, rtol=0)
