"""The compositor as its published code computes it, for comparison (arXiv 2410.19079, section 3).

Single precision, attention with the whole matrix of logits, the hint embedded again at every step, guidance
in two passes that both run both control branches, DDIM.
Legend: b images, c latent channels, h w latent pixels, H W pixels, t tokens.
"""

from collections.abc import Iterator, Sequence

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from cldm.model import Compositor

GUIDANCE, STEPS = 5.0, 50  # run_inference.py of the published code


class PublishedSampler:
    """Runs the networks of a compositor in the published way. Their attention is replaced."""

    def __init__(self, model: Compositor) -> None:
        self.unet, self.controls = model.unet, (model.detail.net, model.depth.net)
        for network in (self.unet, *self.controls, model.latent_space.vae):
            if hasattr(network, "set_attn_processor"):  # the tiny autoencoder has no attention
                network.set_attn_processor(AttnProcessor())
        betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas = (1 - betas).cumprod(0).float()

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor, hints: Sequence[Tensor]) -> Tensor:
        """Noise (b, c, h, w) of x at timesteps (b,). hints: detail (b, 4, H, W), depth (b, 3, H, W)."""
        branches = zip(self.controls, hints, strict=True)
        parts = [net(x, t, tokens, controlnet_cond=hint, return_dict=False) for net, hint in branches]
        (down, mid), (down_depth, mid_depth) = parts
        both = [one + other for one, other in zip(down, down_depth, strict=True)]
        return self.unet(
            x, t, tokens, down_block_additional_residuals=both, mid_block_additional_residual=mid + mid_depth
        ).sample

    def sample(
        self, x: Tensor, tokens: Tensor, null: Tensor, hints: Sequence[Tensor], steps: int = STEPS
    ) -> Iterator[Tensor]:
        """Latents (b, c, h, w) after each step from noise x; tokens, null (b, t, c): identity, zero image."""
        times = list(range(1, 1001, 1000 // steps))[::-1]
        before = [*times[1:], 0]
        for time, earlier in zip(times, before, strict=True):
            t = torch.full((len(x),), time)
            plain, noise = (self.predict(x, t, each, hints) for each in (null, tokens))
            noise = plain + GUIDANCE * (noise - plain)
            alpha, alpha_before = self.alphas[time], self.alphas[earlier]
            clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
            x = alpha_before.sqrt() * clean + (1 - alpha_before).sqrt() * noise
            yield x
