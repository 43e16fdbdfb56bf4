"""A UNet in a sampling loop whose deep features stand for several steps (Ma et al. 2024, DeepCache).

Legend: n images, c channels, h w latent pixels, t tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

LAST_FULL = 3  # steps at the end that reuse nothing; chosen on four scenes, 20 steps: 2 to 3 dB nearer to all


class DeepReuse:
    """The UNet of one run of `total` steps: all of it at every n-th step and the last ones, else `layers`.

    layers: its last ones; 0 = its first level. full_last: steps at the end that reuse nothing.
    Where guidance needs both halves of a batch the conditional one is the last.
    predict: computes in the place of `predict_in_parts` of the UNet
    """

    def __init__(
        self, unet: UNet2DConditionModel, total: int, every: int = 1, layers: int = 0,
        full_last: int = LAST_FULL, predict: Callable[..., tuple[Tensor, list[Tensor]]] | None = None,
    ) -> None:  # fmt: skip
        self.unet, self.every, self.layers, self.left, self.full_last = unet, every, layers, total, full_last
        self.predict = predict or partial(predict_in_parts, unet)
        self.stock = every == 1 and predict is None
        self.deep: Tensor | None = None  # of the last step that was computed whole
        self.since = 0  # steps that took it over

    def __call__(
        self, x: Tensor, t: Tensor, tokens: Tensor, residuals: Sequence[Tensor] = (), **attention: Any
    ) -> Tensor:
        """x (n, c, h, w), n rows of tokens and of each residual, the mid block's last -> (n, c, h, w), float.

        attention: `cross_attention_kwargs` of the call
        """
        if self.stock:
            names = "down_block_additional_residuals", "mid_block_additional_residual"
            hints = dict(zip(names, (residuals[:-1], residuals[-1]), strict=True)) if residuals else {}
            return self.unet(x, t, encoder_hidden_states=tokens, **hints, **attention).sample.float()
        self.left -= 1
        stale = self.deep is None or len(self.deep) < len(x) or self.left < self.full_last
        if stale or self.since == self.every - 1:
            self.deep, self.since = None, -1
        self.since += 1
        deep = None if self.deep is None else self.deep[-len(x) :]
        prediction, entering = self.predict(x, t, tokens, residuals, deep, self.layers, **attention)
        if entering:
            self.deep = entering[-min(self.layers, len(entering))]
        return prediction.float()


def predict_in_parts(
    net: UNet2DConditionModel, x: Tensor, timestep: Tensor, tokens: Tensor, residuals: Sequence[Tensor],
    deep: Tensor | None, layers: int = 0, **attention: Any,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """What the UNet predicts, and the features that enter each layer of its last up block.

    deep: what entered the last `layers` of them (0: all) at an earlier step; then only those layers run, with
    the layers of the first down block whose skips they read, and no features are given back
    """
    last, whole, entering = net.up_blocks[-1], deep is None, []
    time = net.time_embedding(net.time_proj(timestep.expand(len(x))).to(x.dtype))
    given = {"encoder_hidden_states": tokens, **attention}
    count = min(layers, len(last.resnets)) or len(last.resnets)
    sample = net.conv_in(x)
    skips = [sample]
    for layer in residual_layers(net.down_blocks[0])[: None if whole else count - 1]:
        sample = run_layer(layer, sample, time, given)
        skips.append(sample)
    if whole:
        if net.down_blocks[0].downsamplers:
            sample = net.down_blocks[0].downsamplers[0](sample)
            skips.append(sample)
        for block in net.down_blocks[1:]:
            sample, outputs = block(hidden_states=sample, temb=time, **attended(block, given))
            skips.extend(outputs)
    for index, residual in enumerate(residuals[: len(skips)]):  # the first ones
        skips[index] = skips[index] + residual
    if deep is None:
        sample = net.mid_block(sample, time, **given)
        sample = sample + residuals[-1] if residuals else sample
        for block in net.up_blocks[:-1]:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            sample = block(
                hidden_states=sample, temb=time, res_hidden_states_tuple=tuple(own),
                upsample_size=skips[-1].shape[2:], **attended(block, given))  # fmt: skip
    for left, layer in zip(range(len(last.resnets), 0, -1), residual_layers(last), strict=True):
        if left > count and not whole:
            continue
        if whole:
            entering.append(sample)
        elif left == count:
            sample = deep
        sample = run_layer(layer, torch.cat([sample, skips[left - 1]], dim=1), time, given)
    return net.conv_out(net.conv_act(net.conv_norm_out(sample))), entering


def residual_layers(block: nn.Module) -> list[tuple[nn.Module, nn.Module | None]]:
    """Residual blocks of a block of the UNet, each with the attention that follows it."""
    resnets: Any = block.resnets
    attentions: Any = getattr(block, "attentions", [None] * len(resnets))
    return list(zip(resnets, attentions, strict=True))


def run_layer(
    layer: tuple[nn.Module, nn.Module | None], x: Tensor, time: Tensor, given: dict[str, Any]
) -> Tensor:
    """One residual block and its attention, as the block itself runs them."""
    resnet, attention = layer
    x = resnet(x, time)
    return x if attention is None else attention(x, **given, return_dict=False)[0]


def attended(block: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """The tokens for a block that attends to them."""
    return given if getattr(block, "has_cross_attention", False) else {}
