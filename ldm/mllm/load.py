"""Folders of image-and-text language models: strict loading, and what today's processors need set right.

Any `AutoModelForImageTextToText` works: LLaVA, LLaVA-NeXT, Qwen-VL, SmolVLM ... A folder is what
`save_pretrained` writes for the model and for its processor.
"""

import importlib.util
import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    Idefics3Processor,
    LlavaProcessor,
    ProcessorMixin,
    SmolVLMProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils import is_torchvision_available

from ldm.checkpoints import load_pretrained, loading
from ldm.device import pick_device, pick_dtype
from ldm.files import first_line, read_json

log = logging.getLogger(__name__)

CLIP_VISION = "clip_vision_model"  # has one class token, which LLaVA's "default" selection drops again


@dataclass(frozen=True, eq=False)
class Mllm:
    """A vision-language model and the processor that makes its inputs."""

    model: Any  # an AutoModelForImageTextToText, in eval mode
    processor: Any  # a transformers processor with an image processor and a tokenizer
    folder: Path

    @property
    def family(self) -> str:
        """transformers' name of the architecture, such as llava or qwen2_5_vl."""
        return str(self.model.config.model_type)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that it is given."""
        return next(self.model.parameters()).dtype


def load_mllm(folder: Path | str, device: str = "auto", dtype: str = "auto") -> Mllm:
    """A model folder, strictly: a weight that is missing, unexpected or of another shape is a ValueError.

    device: auto, cuda, mps or cpu. dtype: auto, fp32, fp16 or bf16.
    """
    folder = Path(folder)
    target = pick_device(device)
    model = load_model(folder, pick_dtype(dtype, target))
    return Mllm(model.to(target), load_processor(folder, model.config), folder)


def four_bit_works() -> bool:
    """4-bit weights need CUDA and bitsandbytes (requirements-extras.txt)."""
    return torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None


@loading()
def load_four_bit(
    folder: Path | str, compute: torch.dtype, device_map: Any = "auto", dtype: torch.dtype | None = None
) -> Mllm:
    """A model folder with NF4 weights (QLoRA).

    compute: precision of the arithmetic. dtype: of what is not quantised; None: as the folder says.
    """
    folder = Path(folder)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype or "auto",
        quantization_config=nf4,
        device_map=device_map,
        local_files_only=True,
    )
    return Mllm(model.eval(), load_processor(folder, model.config), folder)


def load_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The network of a folder on the CPU."""
    read_json(folder / "config.json")
    return load_pretrained(
        AutoModelForImageTextToText, folder, exact=True, dtype=dtype, local_files_only=True
    )


def load_processor(folder: Path, config: Any = None) -> Any:
    """The processor of a folder, with PIL image processing whatever is installed, so that results are equal.

    Without torchvision a processor that also knows videos is loaded without that part. A LLaVA-1.5 processor
    that cuts the sides off a wide image is replaced by one that pads it to a square, as LLaVA was trained.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True) if config is None else config
    given: dict[str, Any] = {}  # the first file that says something of a key counts
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            given = {**read_json(folder / file), **given}
            given = {key: value for key, value in given.items() if value is not None}
    named = str(given.get("processor_class") or "")  # class
    try:
        kind = getattr(transformers, named, None)
        if kind is None:
            kind = AutoProcessor
        elif not is_torchvision_available():
            kind = images_only(kind)
        processor = kind.from_pretrained(folder, local_files_only=True)
        images = getattr(processor, "image_processor", None)
        if images is not None and not type(images).__name__.endswith("Pil"):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True
            )
    except (OSError, KeyError, ImportError) as error:
        raise ValueError(f"{folder}: no usable processor files: {first_line(error)}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{folder}: names no processor of images and text (processor_config.json)")
    if hasattr(processor, "num_additional_image_tokens"):  # LLaVA and its kin; older files lack what follows
        vision = config.vision_config
        processor.patch_size = processor.patch_size or vision.patch_size
        if not {"num_additional_image_tokens", "vision_feature_select_strategy"} <= given.keys():
            processor.num_additional_image_tokens = int(vision.model_type == CLIP_VISION)
        if processor.vision_feature_select_strategy is None:
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if isinstance(processor, LlavaProcessor):
        images = processor.image_processor
        if not getattr(images, "do_pad", False):
            log.info("images are padded to a square; the folder's processor would cut their sides off")
            side = int(vision.image_size)
            # Centred on a square of the mean colour, then resized.
            processor.image_processor = LlavaImageProcessorPil(
                do_pad=True,
                size={"shortest_edge": side},
                crop_size={"height": side, "width": side},
                image_mean=images.image_mean,
                image_std=images.image_std,
                resample=images.resample,
            )
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    return processor


def images_only(kind: Any) -> Any:
    """A processor class without its video part, which needs torchvision; the class itself if it has none."""
    if "video_processor" not in inspect.signature(kind.__init__).parameters:
        return kind
    if issubclass(kind, SmolVLMProcessor):
        # The same processor of images, before it learnt videos; the name is what a saved folder says.
        return type(kind.__name__, (Idefics3Processor,), {})
    # The family's own __init__ passes three parts on; WithoutVideos comes next in line and takes two.
    return type(kind.__name__, (kind, WithoutVideos), {"__init__": WithoutVideos.begin})


class WithoutVideos(ProcessorMixin):
    """Drops the video part of what a processor's constructor hands to its base class."""

    def __init__(self, *parts: Any, chat_template: str | None = None) -> None:
        given = [part for part in parts if part is not None]
        super().__init__(*given, chat_template=chat_template)

    def begin(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        """The constructor of a derived class; its signature tells transformers which parts there are."""
        family: Any = type(self).__mro__[1]
        family.__init__(self, image_processor, tokenizer, None, chat_template=chat_template)
