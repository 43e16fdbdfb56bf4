"""A compositor folder: one sub-folder per network in `save_pretrained` layout, and a configuration.

unet/ control_detail/ control_depth/ image_encoder/ projector/ vae/ scheduler/ compositor.json
"""

from pathlib import Path

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel

from cldm.config import CONFIG_FILE, CompositorConfig, load_compositor_config
from cldm.model import Compositor, IdentityEncoder
from ldm.checkpoints import folder_written_whole, load_part, save_part
from ldm.files import read_json
from ldm.latents import LatentSpace
from ldm.settings.config import write_config


def save_compositor(
    model: Compositor, config: CompositorConfig, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write the whole folder, or nothing."""
    with folder_written_whole(folder) as partial:
        save_part(model.unet, partial / "unet", dtype)
        save_part(model.detail.net, partial / "control_detail", dtype)
        save_part(model.depth.net, partial / "control_depth", dtype)
        model.identity.save_pretrained(partial, dtype)
        model.latent_space.save_pretrained(partial / "vae", dtype)
        DDIMScheduler.from_config(model.scheduler_config).save_pretrained(partial / "scheduler")
        write_config(partial / CONFIG_FILE, config)


def load_compositor(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Compositor, CompositorConfig]:
    """On the CPU in eval mode, strictly loaded: ValueError names what is missing, unexpected, mis-shaped."""
    config = load_compositor_config(folder)
    unet = load_part(UNet2DConditionModel, folder / "unet", dtype)
    detail = load_part(ControlNetModel, folder / "control_detail", dtype)
    depth = load_part(ControlNetModel, folder / "control_depth", dtype)
    identity = IdentityEncoder.from_pretrained(folder, dtype)
    space = LatentSpace.from_pretrained(folder / "vae", dtype)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    return Compositor(unet, detail, depth, identity, space, schedule).eval(), config
