"""Fresh, untrained compositors of any size; the defaults are the published architecture."""

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.model import Compositor, IdentityEncoder
from ldm.checkpoints import drawing
from ldm.latents import LatentSpace


def backbone(config: NetworkConfig) -> dict:
    """Arguments that the UNet and both ControlNets share."""
    return {
        "in_channels": config.autoencoder.latent_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.attention),
        "block_out_channels": config.block_channels, "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups, "cross_attention_dim": config.token_width,
        "attention_head_dim": config.heads, "use_linear_projection": True}  # fmt: skip


def create_unet(config: NetworkConfig) -> UNet2DConditionModel:
    latents, up = config.autoencoder, config.attention[::-1]
    return UNet2DConditionModel(
        **backbone(config), sample_size=config.size[0] // 2 ** (len(latents.channels) - 1),
        up_block_types=tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in up),
        out_channels=latents.latent_channels)  # fmt: skip


def create_control(config: NetworkConfig, hint_channels: int) -> ControlNetModel:
    net = ControlNetModel(
        **backbone(config),
        conditioning_channels=hint_channels,
        conditioning_embedding_out_channels=config.hint_channels,
    )
    if config.zero_conv_std:
        last = net.controlnet_cond_embedding.conv_out
        for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block, last):
            fan_in = convolution.weight[0].numel()
            nn.init.normal_(convolution.weight, std=config.zero_conv_std / fan_in**0.5)
    return net


def create_identity(config: NetworkConfig) -> IdentityEncoder:
    sizes = Dinov2Config(
        hidden_size=config.identity_width, num_hidden_layers=config.identity_layers,
        num_attention_heads=config.identity_heads, image_size=config.reference_size,
        patch_size=config.identity_patch, use_swiglu_ffn=config.identity_swiglu)  # fmt: skip
    return IdentityEncoder(Dinov2Model(sizes), nn.Linear(config.identity_width, config.token_width))


def create_autoencoder(config: AutoencoderConfig) -> AutoencoderKL | AutoencoderTiny:
    levels = len(config.channels)
    if config.kind == "tiny":
        blocks = (1,) + (config.layers,) * (levels - 1)
        return AutoencoderTiny(
            encoder_block_out_channels=config.channels, decoder_block_out_channels=config.channels,
            num_encoder_blocks=blocks, num_decoder_blocks=blocks[::-1],
            latent_channels=config.latent_channels)  # fmt: skip
    return AutoencoderKL(
        block_out_channels=config.channels, layers_per_block=config.layers,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=config.latent_channels)  # fmt: skip


def noise_schedule(config: NetworkConfig) -> dict:
    """SD's scaled-linear betas; zero-terminal SNR needs trailing steps (Lin et al. 2024)."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=config.prediction,
        rescale_betas_zero_snr=config.zero_snr,
        timestep_spacing="trailing" if config.zero_snr else "leading")  # fmt: skip
    return dict(scheduler.config)


def create_compositor(config: NetworkConfig, seed: int = 0) -> Compositor:
    """All networks, freshly initialised from `seed` (the global generator's state is restored)."""
    with drawing(seed):
        return Compositor(
            create_unet(config), create_control(config, 4), create_control(config, 3),
            create_identity(config), LatentSpace(create_autoencoder(config.autoencoder)),
            noise_schedule(config))  # fmt: skip
