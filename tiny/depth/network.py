"""The tiny depth network, its loss and its held-out measures.

A DPT with a Swin v2 backbone: both are stock transformers classes. Relative position biases let it run at any
size that is a multiple of 32. Legend: b batch, h w pixels; depth is relative inverse depth, 1 = nearest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation, Swinv2Config

from ldm.checkpoints import save_part
from ldm.experts.depth import NOTICE_FILE
from ldm.files import write_json
from ldm.loading import drawing
from tiny.settings import MULTIPLE, DepthNetwork

NOTICE = (
    "This is the small depth network, trained on rendered rooms only: in photographs it orders things hardly "
    "better than the image row does. For photographs give a depth map, or a real depth network "
    "(python -m ldm.registry pull depth)."
)
MEAN = STD = 0.5  # pixels in [-1, 1]
# The network's output for the farthest point: relative depth has no zero, and a ReLU at 0 is dead.
FLOOR = 0.1
LEVELS = 4  # of the backbone, and of the gradient loss
COMPARABLE = 0.02  # pixel pairs whose depths differ less than this have no order


def build_network(config: DepthNetwork, seed: int) -> DPTForDepthEstimation:
    """The untrained network; `seed` decides its weights."""
    backbone = Swinv2Config(
        image_size=config.size, patch_size=4, embed_dim=config.width, depths=list(config.depths),
        num_heads=list(config.heads), window_size=config.window, drop_path_rate=0.0,
        out_features=[f"stage{level}" for level in range(1, LEVELS + 1)],
    )  # fmt: skip
    widths = [config.width * 2**level for level in range(LEVELS)]
    settings = DPTConfig(backbone_config=backbone, neck_hidden_sizes=widths, fusion_hidden_size=config.fusion)
    with drawing(seed):
        model = DPTForDepthEstimation(settings)
        # The stock values leave this narrow decoder almost without signal; the full He gain would explode in
        # its chain of residual sums.
        for part in (*model.neck.modules(), *model.head.modules()):
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                part.weight.data.mul_(0.4)
        last = model.head.head[-2]
        nn.init.normal_(last.weight, std=0.05)
        nn.init.constant_(last.bias, FLOOR + 0.4)  # the mean depth of a room: the ReLU after it is alive
    return model


def predict(model: nn.Module, pixels_01: Tensor) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> (b, h, w) inverse depth."""
    return model(pixel_values=(pixels_01 - MEAN) / STD).predicted_depth.float()


def align(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale and shift every map of `predicted` so that it fits `target` best in the least-squares sense."""
    p, t = (rearrange(value, "b h w -> b (h w)") for value in (predicted, target))
    p_mean, t_mean = p.mean(1, keepdim=True), t.mean(1, keepdim=True)
    variance = ((p - p_mean) ** 2).mean(1, keepdim=True)
    scale = ((p - p_mean) * (t - t_mean)).mean(1, keepdim=True) / (variance + 1e-4)
    return (scale.clamp_min(0.1) * (p - p_mean) + t_mean).view_as(predicted)


def depth_loss(predicted: Tensor, target: Tensor, edges: float) -> Tensor:
    """L1 as it stands and after the best scale and shift, and the gradients of the aligned error.

    The gradients at four resolutions give sharp edges and smooth surfaces. target: (b, h, w) in [0, 1]
    """
    target = FLOOR + target
    aligned_error = align(predicted, target) - target
    values = 0.5 * (predicted - target).abs().mean() + 0.5 * aligned_error.abs().mean()
    gradients = target.new_zeros(())
    for level in range(LEVELS):
        error = aligned_error[:, :: 2**level, :: 2**level]
        gradients = gradients + (error[:, 1:] - error[:, :-1]).abs().mean()
        gradients = gradients + (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return values + edges * (gradients / LEVELS)


def min_max(values: Tensor) -> Tensor:
    """(b, h, w) -> [0, 1] per map; constant maps give zeros."""
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-6)


@torch.no_grad()
def measure_depth(
    model: nn.Module, pixels_u8: np.ndarray, depth_u16: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Held-out measures on images (b, 3, h, w) uint8 with depth (b, h, w) uint16.

    mae      of the min-max normalised prediction
    mae_aligned  after the best scale and shift
    order    fraction of random pixel pairs (depths further apart than 0.02) in the right depth order
    """
    model.eval()
    rng = np.random.default_rng(0)
    absolute, aligned, right, pairs = 0.0, 0.0, 0, 0
    for start in range(0, len(pixels_u8), 16):
        pixels_01 = torch.from_numpy(pixels_u8[start : start + 16]).to(device).float() / 255
        target = min_max(torch.from_numpy(depth_u16[start : start + 16].astype(np.float32)))
        predicted = predict(model, pixels_01).cpu()
        absolute += float((min_max(predicted) - target).abs().mean((1, 2)).sum())
        aligned += float((align(predicted, target) - target).abs().mean((1, 2)).sum())
        p, t = predicted.flatten(1), target.flatten(1)
        i, j = torch.from_numpy(rng.integers(0, p.shape[1], (2, 2000)))
        ordered = (t[:, i] - t[:, j]).abs() > COMPARABLE
        right += int((((p[:, i] > p[:, j]) == (t[:, i] > t[:, j])) & ordered).sum())
        pairs += int(ordered.sum())
    n = len(pixels_u8)
    order = right / max(pairs, 1)
    return {"mae": absolute / n, "mae_aligned": aligned / n, "order": order, "images": float(n)}


def save_network(model: nn.Module, folder: Path, size: int, manifest: dict[str, Any]) -> None:
    """A folder that `ldm.experts.depth.DepthEstimator` loads: fp16 weights, preprocessing, manifest."""
    save_part(model, folder)
    preprocessing = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True, "size": {"height": size, "width": size}, "keep_aspect_ratio": True,
        "ensure_multiple_of": MULTIPLE, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", preprocessing)
    write_json(folder / NOTICE_FILE, {"notice": NOTICE})
    write_json(folder / "manifest.json", manifest)
