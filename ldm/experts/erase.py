"""Removing an object: fill a hole of an image from what is around it, by LaMa, a stock inpainting folder of
diffusers (Stable Diffusion 2), exemplars (PatchMatch), or OpenCV.
Legend: h w pixels of the image, n m pixels of the network.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ldm.checkpoints import loading
from ldm.device import check_finite
from ldm.files import file_sha256, hash_folder, named_failure
from ldm.images import fitted, resize, to_01
from ldm.registry.models import resolve_model_path

logger = logging.getLogger(__name__)

# What "auto" tries first: big-lama.pt as TorchScript, and the folder of the model sd2-inpainting.
WEIGHTS = Path("models/lama/big-lama.pt"), Path("models/stable-diffusion-2-inpainting/model_index.json")
AUTO, EXEMPLAR, OPENCV = "auto", "exemplar", "opencv"
PATCH = 2  # pixels around the middle of a patch; of 2, 3, 5 and 7 it keeps most texture in photographs
EXEMPLAR_WINDOW = 3.0  # side of the window that exemplars are taken from, over the side of the hole (chosen)
EXEMPLAR_RING = 0.6  # width of the ring that they are taken from, over the square root of the hole's area
EXEMPLAR_SIDE = 1024  # pixels; larger windows are filled at this size, in seconds (chosen)
LEAST_EXEMPLARS = 0.2  # of the hole; with fewer pixels farther ones count too (chosen)
TELEA_RADIUS = 5  # pixels around a missing one that OpenCV looks at
OPENCV_SIDE = 768  # larger images are filled at this size: the time of OpenCV grows with the hole
LAMA_MULTIPLE = 8  # sides that the network accepts
WINDOW = 1.6  # side of the window that a diffusion model sees, over the side of the hole
PROMPT, AVOID = "empty background", "object, person, animal, text, watermark"
STEPS, GUIDANCE = 30, 5.0

Fill = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Eraser:
    """A way to fill holes. kind: opencv, exemplar, lama or diffusion. identity: what decides the result."""

    kind: str
    identity: str
    fill: Fill | None = None  # of a network

    @classmethod
    def load(
        cls, source: Path | str | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Eraser":
        """A TorchScript file, a diffusers inpainting folder, "exemplar" or "opencv"; ValueError otherwise.

        source: None or "auto": the first of them that is there, in this order; OpenCV with a warning
        dtype:  of the diffusion model; LaMa's Fourier layers need float32
        """
        name = str(source or AUTO)
        if name == AUTO:
            known = [path for path in map(resolve_model_path, WEIGHTS) if path.is_file()]
            found = [path.parent if path.suffix == ".json" else path for path in known]
            name = str(found[0]) if found else EXEMPLAR if _patchmatch() else OPENCV
            if name == OPENCV:
                logger.warning(
                    "holes are filled by OpenCV, which blurs: pip install pypatchmatch keeps texture"
                )
        if name == OPENCV:
            return cls(OPENCV, f"opencv radius {TELEA_RADIUS} side {OPENCV_SIDE}")
        if name == EXEMPLAR:
            if (patchmatch := _patchmatch()) is None:
                raise ValueError("eraser exemplar: pypatchmatch is not installed: pip install pypatchmatch")
            numbers = f"{PATCH} {EXEMPLAR_WINDOW} {EXEMPLAR_RING} {EXEMPLAR_SIDE}"
            return cls(EXEMPLAR, f"exemplar {patchmatch.__version__} {numbers} planes in perspective 2")
        path = Path(name)
        if path.is_file():
            return cls("lama", f"lama {file_sha256(path)}", _lama(path, device))
        if (path / "model_index.json").is_file():
            hashes = sorted(hash_folder(path).items())
            return cls("diffusion", f"diffusion {hashes} {PROMPT!r} {STEPS}", _diffusion(path, device, dtype))
        wrong = f"eraser {source}: neither a TorchScript file (LaMa) nor a diffusers folder"
        raise ValueError(f"{wrong} (model_index.json); auto, exemplar and opencv need no weights")

    def erase(
        self, rgb_u8: np.ndarray, mask: np.ndarray, seed: int = 0, apart: np.ndarray | None = None
    ) -> np.ndarray:
        """RGB (h, w, 3) uint8 with the pixels of mask (h, w) bool filled, all others as given.

        seed: of a diffusion model;  apart: (h, w) bool, what exemplars are not taken from
        ValueError where the mask covers everything.
        """
        if mask.shape != rgb_u8.shape[:2] or mask.dtype != bool:
            raise ValueError(f"the mask must be bool {rgb_u8.shape[:2]}, got {mask.dtype} {mask.shape}")
        if not mask.any():
            return rgb_u8.copy()
        if mask.all():
            raise ValueError("the mask covers the whole image, so there is nothing to fill it from")
        if self.fill is not None:
            filled = self.fill(rgb_u8, mask, seed)
        elif self.kind == EXEMPLAR:
            filled = _exemplar(rgb_u8, mask, np.zeros_like(mask) if apart is None else apart)
        else:  # Telea's fast marching, at most OPENCV_SIDE pixels wide and high
            size = fitted(mask.shape, OPENCV_SIDE)
            # Any touched pixel is filled, or the object's colour would bleed in at the hole's edge.
            hole = (resize(mask.astype(np.float32), size) > 0).astype(np.uint8)
            filled = cv2.inpaint(resize(rgb_u8, size), hole, TELEA_RADIUS, cv2.INPAINT_TELEA)
            filled = resize(filled, mask.shape, how="linear")
        return np.where(mask[..., None], filled, rgb_u8)


def _patchmatch() -> Any:
    """The library of exemplars; None where it is not installed, or came without its binary."""
    try:
        import patchmatch
    except ModuleNotFoundError:
        return None
    return patchmatch if patchmatch.patchmatch_available else None


def _exemplar(rgb_u8: np.ndarray, mask: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """PatchMatch (Barnes et al. 2009) from what is near the hole and not apart; always the same fill."""
    x0, y0, x1, y1 = window_around(mask, OPENCV_SIDE, EXEMPLAR_WINDOW)
    part, hole = rgb_u8[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    if hole.all():  # what is known lies beside a very large hole
        part, hole, (x0, y0, x1, y1) = rgb_u8, mask, (0, 0, mask.shape[1], mask.shape[0])
    size = fitted(hole.shape, EXEMPLAR_SIDE)
    small = resize(hole.astype(np.float32), size) > 0
    if small.all():
        raise ValueError("the mask leaves too little of the image to fill it from")
    other = resize(apart[y0:y1, x0:x1].astype(np.float32), size) > 0
    found_u8 = from_exemplars(resize(part, size), small, ~small, other, PATCH)
    filled = rgb_u8.copy()
    filled[y0:y1, x0:x1] = resize(found_u8, hole.shape, how="linear")
    return filled


def from_exemplars(
    rgb_u8: np.ndarray, hole: np.ndarray, known: np.ndarray, apart: np.ndarray, patch: int
) -> np.ndarray:
    """RGB (n, m, 3) uint8 with its hole filled from a ring of what is known and not apart, all (n, m) bool.

    With few of them all of the ring, or all that is known, counts.  patch: pixels around the middle of one
    """
    away = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, 3)
    near = known & (away <= max(2 * patch + 1, EXEMPLAR_RING * np.sqrt(hole.sum())))
    for source in (near & ~apart, near, known):
        if source.sum() >= LEAST_EXEMPLARS * hole.sum():
            break
    library = _patchmatch()
    library.set_random_seed(0)  # one for all threads: the library keeps it for the process
    return library.inpaint(rgb_u8, hole, global_mask=~source & ~hole, patch_size=patch)


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


def window_around(mask: np.ndarray, least: int, scale: float = WINDOW) -> tuple[int, int, int, int]:
    """Pixels x0, y0, x1, y1 of a square around the hole, at least `least` wide if the image is so large.

    scale: side of the square over that of the hole
    """
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(least, round(scale * longest))
    found = []
    for line, limit in ((columns, w), (rows, h)):
        length = min(side, limit)
        start = min(max(0, round((line[0] + line[-1] + 1 - length) / 2)), limit - length)
        found.append((int(start), int(start + length)))
    (x0, x1), (y0, y1) = found
    return x0, y0, x1, y1
