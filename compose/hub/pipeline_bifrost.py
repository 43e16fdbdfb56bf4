"""The compositor as a pipeline of diffusers, and its steps as blocks that can be replaced or run alone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    ModelMixin,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    OutputParam,
    PipelineState,
)
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import Dinov2Model, PreTrainedModel

from cldm.config import SPEEDS, Sampling
from cldm.model import Compositor, IdentityEncoder
from cldm.pipeline import CompositorPipeline, Weights
from compose.hub.shared import (
    HubPipeline,
    as_images,
    as_loaded,
    as_mask,
    as_tuples,
    first_seed,
    setting_values,
    shows_progress,
)
from datasets.geometry import check_box01, extent_in_depth
from datasets.inputs import Augment, Inputs, PairOptions
from datasets.pairs import Geometry, pair_of
from datasets.pasteback import stitch
from ldm.denoise import Monitor
from ldm.experts.depth import DepthEstimator, DepthInput
from ldm.experts.matting import alpha_at_outline
from ldm.latents import LatentSpace
from ldm.settings.config import nearest

PARTS = {
    "unet": UNet2DConditionModel,
    "control_detail": ControlNetModel,
    "control_depth": ControlNetModel,
    "image_encoder": Dinov2Model,
    "vae": ModelMixin,
    "scheduler": DDIMScheduler,
    "depth_estimator": PreTrainedModel,
}
SETTINGS = "of the model: pair, sampling, latents, depth"
REQUIRED = ("image", "reference")
DEFAULTS = {"mode": "place", "depth_weight": 1.0, "num_images_per_prompt": 1, "seed": 0}
VALUES = {  # what the blocks read and make
    "image": "path, address, PIL image or RGB(A) uint8 array (h, w, c): the background",
    "reference": "image of the object, as `image`",
    "reference_mask": "white = object; without it the transparency of the reference",
    "box": "x0, y0, x1, y1 in fractions of the image: where the object goes; or instruction and locator",
    "instruction": "sentence that says where the object goes, for the locator",
    "locator": "called with the image (PIL, RGB) and the instruction, returns box and depth (or None)",
    "depth": "1 = nearest: of the object's middle, or (far, near); without it that of the ground there",
    "background_depth": "(h, w) in [0, 1], 1 = nearest; without it the depth network estimates it",
    "extent": "(far, near) of the object",
    "mode": "place, replace, id-transfer or inpaint",
    "target_mask": "white = what the object takes the place of",
    "geometry": "box, region, crop and cut-out, in which `layers` says what lies where",
    "num_inference_steps": "sampling steps; without it the model's",
    "guidance_scale": "1 = off; without it the model's",
    "strength": "noise put on the pasted object where sampling starts from it; without it the model's",
    "depth_weight": "weight of the depth branch, lambda in the paper",
    "speed": "exact, balanced or fast; without it balanced, or what the model's settings say",
    "num_images_per_prompt": "samples; sample i has seed + i",
    "seed": "of the first sample",
    "generator": "draws the seed",
    "seeds": "of the samples",
    "crops": "(h, w, 3) uint8 each, as painted",
    "sampling": "sampler settings that were used",
    "output_type": "pil, or np: uint8 arrays (h, w, c)",
    "images": "the background with the object in it",
    "edit_mask": "(h, w) bool, what was allowed to change",
}


class Block(ModularPipelineBlocks):
    """A step. parts, reads, makes: names of its networks, inputs and outputs."""

    parts = reads = makes = ""

    description = property(lambda self: self.__doc__)
    expected_components = property(
        lambda self: [ComponentSpec(name, PARTS[name]) for name in self.parts.split()]
    )
    expected_configs = property(lambda self: [ConfigSpec("settings", {}, SETTINGS)])
    inputs = property(
        lambda self: [
            InputParam(name, default=DEFAULTS.get(name), required=name in REQUIRED, description=VALUES[name])
            for name in self.reads.split()
        ]
    )
    intermediate_outputs = property(
        lambda self: [OutputParam(name, description=VALUES[name]) for name in self.makes.split()]
    )

    @torch.no_grad()
    def __call__(self, pipe: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        block = self.get_block_state(state)
        self.run(pipe, block)
        self.set_block_state(state, block)
        return pipe, state


class Locate(Block):
    """Where the object goes: the given box, or what a locator makes of an instruction. A given depth wins."""

    reads, makes = "image box depth instruction locator", "box depth"

    def run(self, pipe: Any, block: BlockState) -> None:
        if (block.instruction is None) != (block.locator is None):
            raise ValueError("instruction and locator belong together: give both, or a box")
        if (block.box is None) == (block.locator is None):
            raise ValueError("give either a box, or an instruction with a locator")
        depth = None
        if block.locator is not None:
            image = Image.fromarray(as_loaded(block.image).rgb_u8)
            block.box, depth = block.locator(image, block.instruction)
        block.box = check_box01(block.box)
        block.depth = depth if block.depth is None else block.depth


class Depth(Block):
    """How near everything is in the image, and the object in it."""

    parts, reads, makes = "depth_estimator", "image box depth background_depth", "background_depth extent"

    def run(self, pipe: Any, block: BlockState) -> None:
        if block.background_depth is None:
            if (network := pipe.depth_estimator) is None:
                raise ValueError("this pipeline has no depth network: give background_depth")
            network = network.float() if network.device.type == "cpu" else network  # half would overflow
            metric = getattr(network.config, "depth_estimation_type", "") == "metric"
            estimator = DepthEstimator(network, DepthInput(**setting_values(pipe, "depth")), metric)
            block.background_depth = estimator.predict([as_loaded(block.image).rgb_u8])[0]
        block.background_depth = np.asarray(block.background_depth, np.float32)
        block.extent = extent_in_depth(block.depth, block.background_depth, block.box)


class Fuse(Block):
    """The object put into the scene: crop, what hides it, what may change."""

    reads = "image box extent background_depth reference reference_mask mode target_mask"
    makes = "geometry"

    def run(self, pipe: Any, block: BlockState) -> None:
        image, item, pair = as_loaded(block.image), as_loaded(block.reference), setting_values(pipe, "pair")
        target = None if block.target_mask is None else as_mask(block.target_mask, image.size)
        if block.reference_mask is None and item.alpha_u8 is None:
            raise ValueError("the reference is not transparent anywhere: give reference_mask too")
        alpha_01, cut = None, item.alpha_u8
        cut = as_mask(cut if block.reference_mask is None else block.reference_mask, item.size)
        if block.reference_mask is None and item.alpha_u8 is not None:
            alpha_01 = alpha_at_outline(cut, item.alpha_u8)
        place = block.box, block.extent, block.mode
        inputs = Inputs(
            item.rgb_u8,
            cut,
            image.rgb_u8,
            block.background_depth,
            *place,
            target_mask=target,
            reference_alpha_01=alpha_01,
        )
        pair["augment"] = Augment(**as_tuples(pair.get("augment", {})))
        block.geometry = Geometry.of(inputs, PairOptions(**pair))


class Paint(Block):
    """The crop, painted once a sample."""

    parts = "unet control_detail control_depth image_encoder vae scheduler"
    reads = (
        "geometry num_inference_steps guidance_scale strength depth_weight speed num_images_per_prompt seed"
    )
    reads += " generator"
    makes = "crops seeds sampling"

    def run(self, pipe: Any, block: BlockState) -> None:
        sampling = Sampling(**setting_values(pipe, "sampling"))
        if speed := block.speed or sampling.usual_speed:
            sampling = replace(sampling, **SPEEDS[speed])
        given = {
            "steps": block.num_inference_steps,
            "guidance": block.guidance_scale,
            "strength": block.strength,
        }
        given["scheduler"] = type(pipe.scheduler).__name__
        block.sampling = replace(
            sampling, **{key: value for key, value in given.items() if value is not None}
        )
        first = first_seed(block.seed, block.generator)
        block.seeds = list(range(first, first + block.num_images_per_prompt))
        encoder, device = pipe.image_encoder.to(pipe.unet.dtype), pipe.unet.device
        identity = IdentityEncoder(encoder, pipe.control_detail.encoder_hid_proj)
        space, schedule = (
            LatentSpace(pipe.vae, **setting_values(pipe, "latents")),
            dict(pipe.scheduler.config),
        )
        networks = pipe.unet, pipe.control_detail, pipe.control_depth, identity, space
        painter = CompositorPipeline(Compositor(*networks, schedule).to(device).eval(), device)
        how = Weights(depth=block.depth_weight), Monitor(progress=shows_progress(pipe))
        block.crops = painter.paint(pair_of(block.geometry), block.seeds, block.sampling, *how)


class Paste(Block):
    """The crops back in the image; outside the edit mask every byte stays."""

    reads, makes = "image geometry crops sampling output_type", "images edit_mask"

    def run(self, pipe: Any, block: BlockState) -> None:
        detail = {"detail": block.sampling.detail, "detail_scale": block.sampling.detail_scale}
        background = as_loaded(block.image)
        finished = [stitch(block.geometry, crop, background=background, **detail) for crop in block.crops]
        block.images = as_images([each.result for each in finished], block.output_type)
        block.edit_mask = finished[0].edit_mask


class BifrostBlocks(SequentialPipelineBlocks):
    """The whole pipeline."""

    block_classes = [Locate, Depth, Fuse, Paint, Paste]
    block_names = ["locate", "depth", "fuse", "paint", "paste"]
    description = "An object goes into an image at a box and a depth; what is nearer hides it."


@dataclass
class BifrostOutput(BaseOutput):
    """Of the pipeline, each as `BifrostBlocks().doc` describes it."""

    images: list[Any]
    seeds: list[int]
    edit_mask: np.ndarray
    extent: tuple[float, float]
    background_depth: np.ndarray


class BifrostPipeline(HubPipeline):
    """Put an object into an image at a box and a depth; what is nearer hides it.

    The networks are stock ones; `encoder_hid_proj` of the detail branch projects the image encoder's tokens.
    """

    _optional_components = ["depth_estimator"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        control_detail: ControlNetModel,
        control_depth: ControlNetModel,
        image_encoder: Dinov2Model,
        vae: ModelMixin,
        scheduler: DDIMScheduler,
        depth_estimator: PreTrainedModel | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        branches = {"control_detail": control_detail, "control_depth": control_depth}
        networks = {"image_encoder": image_encoder, "vae": vae, "depth_estimator": depth_estimator}
        self.register_modules(unet=unet, scheduler=scheduler, **branches, **networks)
        self.register_to_config(settings=settings or {})

    def __call__(
        self,
        image: Any,
        reference: Any,
        box: Any = None,
        depth: Any = None,
        return_dict: bool = True,
        **options: Any,
    ) -> BifrostOutput | tuple[list[Any]]:
        """The images. options: more inputs of the blocks, such as seed; `BifrostBlocks().doc` has all."""
        blocks, state = BifrostBlocks(), PipelineState()
        given = {"image": image, "reference": reference, "box": box, "depth": depth, **options}
        for name in given:
            if name not in blocks.input_names:
                raise ValueError(nearest(name, blocks.input_names, "argument"))
        for each in blocks.inputs:
            state.set(each.name, given.get(each.name, each.default))
        blocks(self, state)
        made = state.get([*BifrostOutput.__dataclass_fields__])
        return BifrostOutput(**made) if return_dict else (made["images"],)
