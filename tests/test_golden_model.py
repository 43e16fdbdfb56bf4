"""The published compositor at reduced width, weights made from key names: our networks give the same numbers.

Needs the golden tensors in the folder BIFROST_TEST_DATA; architecture and stock equality are tested without.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor, nn

from cldm.conditioner import IdentityEncoder
from cldm.create import (
    AutoencoderConfig,
    NetworkConfig,
    create_autoencoder,
    create_control,
    create_identity,
    create_unet,
    noise_schedule,
)
from cldm.model import Compositor
from ldm.denoise import denoise, set_steps
from ldm.latents import LatentSpace, make_scheduler

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


def named_weight(key: str, shape: list[int]) -> Tensor:
    """Weights that follow from the name of their key."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        fan = int(np.prod(shape[1:]))
        x = x * (0.7 / np.sqrt(fan)) if key.endswith("weight") and fan > 1 else x * 0.02
    else:
        x = 1 + 0.1 * x if key.endswith((".weight", ".gamma")) else 0.05 * x
    return torch.from_numpy(np.asarray(x, np.float32))


def dinov2_names(weights: dict[str, Tensor], side: int, grid: int) -> dict[str, Tensor]:
    """Original DINOv2 keys -> transformers, position embeddings interpolated as the original does."""
    out: dict[str, Tensor] = {}
    renames = {
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.w3": "mlp.down_proj",
    }
    for key, value in weights.items():
        if key == "pos_embed":
            patches = value[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
            scaled = nn.functional.interpolate(patches, scale_factor=(side + 0.1) / grid, mode="bicubic")
            out["embeddings.position_embeddings"] = torch.cat(
                [value[:, :1], scaled.flatten(2).transpose(1, 2)], 1
            )
        elif key in ("cls_token", "mask_token"):
            out[f"embeddings.{key}"] = value
        elif key.startswith("patch_embed.proj"):
            out[key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif key.startswith("norm."):
            out["layernorm" + key[4:]] = value
        else:
            name = "encoder.layer." + key.removeprefix("blocks.")
            for old, new in renames.items():
                name = name.replace(old, new)
            if "attn.qkv" in name:
                for part, chunk in zip("qkv", value.chunk(3), strict=True):
                    out[name.replace("attn.qkv", f"attention.{part}_proj")] = chunk
            elif "mlp.w12" in name:
                for part, chunk in zip(("gate_proj", "up_proj"), value.chunk(2), strict=True):
                    out[name.replace("w12", part)] = chunk
            else:
                out[name] = value
    return out


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(golden_folder() / "compositor_tiny.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def model() -> Compositor:
    manifest = json.loads((golden_folder() / "tiny_manifest.json").read_text())
    weights = {key: named_weight(key, shape) for key, (shape, _) in manifest.items() if "." in key}

    def below(prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}

    unet, vae = create_unet(REDUCED), create_autoencoder(REDUCED.autoencoder)
    unet.load_state_dict(
        convert_ldm_unet_checkpoint(
            {f"model.diffusion_model.{key}": value for key, value in below("model.diffusion_model.").items()},
            unet.config,
        )
    )
    vae.load_state_dict(
        convert_ldm_vae_checkpoint(
            {f"first_stage_model.{key}": value for key, value in below("first_stage_model.").items()},
            vae.config,
        )
    )
    branches = []
    for name, channels in (("detail", 4), ("depth", 3)):
        net = create_control(REDUCED, channels)
        net.load_state_dict(convert_controlnet_checkpoint(below(f"control_model_{name}."), net.config))
        branches.append(net)
    identity = create_identity(REDUCED)
    identity.encoder.load_state_dict(dinov2_names(below("cond_stage_model.model."), 16, 37))
    identity.projector.load_state_dict(below("cond_stage_model.projector."))
    space = LatentSpace(vae, std=[1 / 0.18215] * 4)
    return Compositor(
        unet, *branches, IdentityEncoder(identity.encoder, identity.projector), space, noise_schedule(REDUCED)
    ).eval()


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
    timesteps = set_steps(scheduler, 5, 1.0, torch.device("cpu"))
    assert timesteps.tolist() == sorted(golden["out_ddim_timesteps_5"].tolist(), reverse=True)
    both = conditions.with_null(model.identity.null())
    latents = denoise(
        lambda x, t, guided: model(x, t, both),
        golden["in_xT"],
        scheduler,
        timesteps,
        guidance=5.0,
        progress=False,
    )
    torch.testing.assert_close(latents, golden["out_ddim5_cfg5"], atol=1e-3, rtol=0)
