"""Removing an object: fill a hole of an image from what is around it, by LaMa, a stock inpainting folder of
diffusers (Stable Diffusion 2), or OpenCV. Legend: h w pixels of the image, n m pixels of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ldm.device import check_finite
from ldm.files import file_sha256, hash_folder, named_failure
from ldm.images import fitted, resize, to_01
from ldm.loading import loading

TELEA_RADIUS = 5  # pixels around a missing one that OpenCV looks at
OPENCV_SIDE = 768  # larger images are filled at this size: the time of OpenCV grows with the hole
LAMA_MULTIPLE = 8  # sides that the network accepts
WINDOW = 1.6  # side of the window that a diffusion model sees, over the side of the hole
PROMPT, AVOID = "empty background", "object, person, animal, text, watermark"
STEPS, GUIDANCE = 30, 5.0

Fill = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Eraser:
    """A way to fill holes. kind: "opencv", "lama" or "diffusion". identity: what decides the result."""

    kind: str
    identity: str
    fill: Fill | None = None  # of a network

    @classmethod
    def load(
        cls, source: Path | str | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Eraser":
        """None or "opencv", a TorchScript file, or an inpainting folder of diffusers; ValueError otherwise.

        dtype: of the diffusion model; LaMa's Fourier layers need float32
        """
        if source is None or str(source) in ("", "opencv"):
            return cls("opencv", f"opencv radius {TELEA_RADIUS} side {OPENCV_SIDE}")
        path = Path(source)
        if path.is_file():
            return cls("lama", f"lama {file_sha256(path)}", _lama(path, device))
        if (path / "model_index.json").is_file():
            hashes = sorted(hash_folder(path).items())
            return cls("diffusion", f"diffusion {hashes} {PROMPT!r} {STEPS}", _diffusion(path, device, dtype))
        raise ValueError(
            f"eraser {source}: neither a TorchScript file (LaMa) nor a diffusers folder (model_index.json); "
            "leave it out to fill with OpenCV"
        )

    def erase(self, rgb_u8: np.ndarray, mask: np.ndarray, seed: int = 0) -> np.ndarray:
        """RGB (h, w, 3) uint8 with the pixels of mask (h, w) bool filled, all others as given.

        seed: of a diffusion model. ValueError where the mask covers everything.
        """
        if mask.shape != rgb_u8.shape[:2] or mask.dtype != bool:
            raise ValueError(f"the mask must be bool {rgb_u8.shape[:2]}, got {mask.dtype} {mask.shape}")
        if not mask.any():
            return rgb_u8.copy()
        if mask.all():
            raise ValueError("the mask covers the whole image, so there is nothing to fill it from")
        if self.fill is not None:
            filled = self.fill(rgb_u8, mask, seed)
        else:  # Telea's fast marching, at most OPENCV_SIDE pixels wide and high
            size = fitted(mask.shape, OPENCV_SIDE)
            # Any touched pixel is filled, or the object's colour would bleed in at the hole's edge.
            hole = (resize(mask.astype(np.float32), size) > 0).astype(np.uint8)
            filled = cv2.inpaint(resize(rgb_u8, size), hole, TELEA_RADIUS, cv2.INPAINT_TELEA)
            filled = resize(filled, mask.shape, how="linear")
        return np.where(mask[..., None], filled, rgb_u8)


def _lama(path: Path, device: str) -> Fill:
    """image (1, 3, n, m) in [0, 1] and mask (1, 1, n, m) of 0 and 1 -> image in [0, 1], sides padded."""
    with named_failure(f"eraser {path} cannot be loaded as TorchScript", RuntimeError, ValueError):
        network = torch.jit.load(str(path), map_location=device).eval()

    @torch.inference_mode()
    def fill(rgb_u8: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        h, w = mask.shape
        pad = [0, -w % LAMA_MULTIPLE, 0, -h % LAMA_MULTIPLE]
        planes = to_01(rgb_u8)[None], torch.from_numpy(mask)[None, None].float()
        image, hole = (functional.pad(plane, pad, mode="replicate").to(device) for plane in planes)
        filled = network(image, hole)
        check_finite(filled, "eraser (LaMa)")
        if filled.shape != image.shape:
            raise ValueError(f"eraser {path} gave {tuple(filled.shape)} for {tuple(image.shape)}: not LaMa")
        values = (filled[0, :, :h, :w].float() * 255).round().clamp(0, 255).to(torch.uint8)
        return values.permute(1, 2, 0).cpu().numpy()

    return fill


@loading()
def _diffusion(folder: Path, device: str, dtype: torch.dtype) -> Fill:
    """The stock inpainting pipeline on a window around the hole, at the model's own size."""
    from diffusers import StableDiffusionInpaintPipeline

    what = f"eraser {folder} cannot be loaded"
    with named_failure(what, OSError, ValueError, TypeError, AttributeError, KeyError):
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(
            str(folder), dtype=dtype, safety_checker=None, local_files_only=True
        )
    if (channels := pipeline.unet.config.in_channels) != 9:
        raise ValueError(f"eraser {folder} is no inpainting model: its UNet has {channels} inputs, not 9")
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    cells = pipeline.vae_scale_factor
    native = pipeline.unet.config.sample_size * cells

    def fill(rgb_u8: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        x0, y0, x1, y1 = window_around(mask, native)
        scale = native / max(x1 - x0, y1 - y0)
        n, m = (max(1, round(side * scale / cells)) * cells for side in (y1 - y0, x1 - x0))
        hole = resize(mask[y0:y1, x0:x1].astype(np.float32), (n, m)) > 0
        painted = pipeline(
            prompt=PROMPT, negative_prompt=AVOID, height=n, width=m, num_inference_steps=STEPS,
            image=Image.fromarray(resize(rgb_u8[y0:y1, x0:x1], (n, m))),
            mask_image=Image.fromarray(hole.astype(np.uint8) * 255), guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed), output_type="np",
        ).images[0]  # fmt: skip
        check_finite(torch.from_numpy(painted), "eraser (diffusion model)")
        filled = rgb_u8.copy()
        filled[y0:y1, x0:x1] = resize(np.round(painted * 255).astype(np.uint8), (y1 - y0, x1 - x0))
        return filled

    return fill


def window_around(mask: np.ndarray, least: int) -> tuple[int, int, int, int]:
    """Pixels x0, y0, x1, y1 of a square around the hole, at least `least` wide if the image is so large."""
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(least, round(WINDOW * longest))
    found = []
    for line, limit in ((columns, w), (rows, h)):
        length = min(side, limit)
        start = min(max(0, round((line[0] + line[-1] + 1 - length) / 2)), limit - length)
        found.append((int(start), int(start + length)))
    (x0, x1), (y0, y1) = found
    return x0, y0, x1, y1
