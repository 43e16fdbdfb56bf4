"""A painter from outside: an inpainting pipeline of diffusers, called by what its signature takes.

Legend: h w pixels of the crop, a square of the pipeline's own size.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.checkpoints import loading
from ldm.device import check_finite
from ldm.files import hash_folder, named_failure, read_json

NEEDED = ("image", "mask_image", "prompt")  # what a pipeline must take
SIZE, MULTIPLE = 1024, 32  # pixels of a pipeline that states none; sides that all known families accept
STRENGTH = 0.6  # of the noise put on the pasted object, so that it stays what it is (chosen)
AVOID = " "  # an empty negative prompt; guidance of some families needs one


@dataclass(frozen=True, eq=False)
class FolderPainter:
    """An inpainting pipeline. identity: its weights; size: side of the crop that it paints, pixels."""

    pipeline: Any
    identity: dict[str, str]
    size: int

    @classmethod
    @loading()
    def load(
        cls, folder: Path | str, device: str = "cpu", dtype: Any = torch.float32, offload: bool = False
    ) -> "FolderPainter":
        """ValueError where the folder holds no pipeline that takes an image, a mask and a prompt.

        offload: each network is on the device only while it works
        """
        import diffusers

        path = Path(folder)
        if not (path / "model_index.json").is_file():
            raise ValueError(f"painter {folder}: no diffusers pipeline (model_index.json) is there")
        index = read_json(path / "model_index.json", dict)
        name, absent = index.get("_class_name"), [part for part, of in index.items() if of == [None, None]]
        loader = getattr(diffusers, str(name), None)
        if loader is None:
            raise ValueError(f"painter {folder}: the pipeline {name} is unknown to diffusers")
        if not set(NEEDED) <= set(inspect.signature(loader.__call__).parameters):
            loader = diffusers.AutoPipelineForInpainting  # the same networks, as an inpainting pipeline
        what = f"painter {folder} cannot be loaded as an inpainting pipeline"
        with named_failure(what, OSError, ValueError, TypeError, AttributeError, KeyError):
            pipeline = loader.from_pretrained(
                str(path), dtype=dtype, local_files_only=True, **dict.fromkeys(absent)
            )
        if offload and device != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        # Side of the images that a pipeline was trained on, pixels, as far as it says so.
        unet = getattr(pipeline, "unet", None)
        cells = unet.config.get("sample_size") if unet else getattr(pipeline, "default_sample_size", None)
        side = cells * pipeline.vae_scale_factor if isinstance(cells, int) else SIZE
        return cls(pipeline, hash_folder(path), max(MULTIPLE, side // MULTIPLE * MULTIPLE))

    @property
    def takes(self) -> dict[str, Any]:
        """Arguments of the pipeline's call -> their defaults."""
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        return {name: each.default for name, each in parameters.items() if name != "self"}

    def arguments(
        self, prompt: str, steps: int | None, guidance: float | None, strength: float | None
    ) -> dict[str, Any]:
        """What the call gets of a user's wishes; ValueError for one that this pipeline does not know."""
        takes = self.takes
        own = takes.get("guidance_scale") is not None or "true_cfg_scale" not in takes
        scale = "guidance_scale" if own else "true_cfg_scale"
        wished = {"num_inference_steps": steps, scale: guidance, "strength": strength}
        given = {name: value for name, value in wished.items() if value is not None}
        if unknown := [name for name in given if name not in takes]:
            kind = type(self.pipeline).__name__
            wrong = f"painter {kind} does not know {', '.join(unknown)}; it takes {', '.join(takes)}"
            raise ValueError(wrong)
        if "strength" in takes and "image_reference" not in takes:
            given.setdefault("strength", STRENGTH)
        extra = {"height": self.size, "width": self.size, "output_type": "np"}
        if scale == "true_cfg_scale":
            extra["negative_prompt"] = AVOID
        return {"prompt": prompt, **given, **{name: v for name, v in extra.items() if name in takes}}

    def paint(
        self,
        crop_u8: np.ndarray,
        mask: np.ndarray,
        reference_u8: np.ndarray,
        seed: int,
        given: dict[str, Any],
    ) -> np.ndarray:
        """The crop (h, w, 3) uint8 painted where mask (h, w) bool is set.

        reference_u8: (n, n, 3), the object on white; given: as `arguments` says
        """
        images = {"image": crop_u8, "mask_image": mask.astype(np.uint8) * 255}
        if "image_reference" in self.takes:
            images["image_reference"] = reference_u8
        call = {name: Image.fromarray(image) for name, image in images.items()}
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            painted = np.asarray(self.pipeline(**call, **given, generator=generator).images[0])
        check_finite(torch.from_numpy(painted), f"painter {type(self.pipeline).__name__}")
        if painted.shape != crop_u8.shape:
            raise ValueError(f"the painter gave {painted.shape}, expected {crop_u8.shape}")
        return np.rint(painted * 255).clip(0, 255).astype(np.uint8)
