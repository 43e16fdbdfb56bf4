"""Image-and-text language models: strict loading, their processors set right, chat with labels for training.

Any `AutoModelForImageTextToText` works: LLaVA, LLaVA-NeXT, Qwen-VL, SmolVLM ... A folder is what
`save_pretrained` writes for the model and for its processor, whose template and image placeholders chat uses;
nothing is ever truncated. Legend: b rows of a batch, t tokens.
"""

import importlib.util
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaProcessor, ProcessorMixin
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils import is_torchvision_available

from ldm.checkpoints import load_pretrained, loading
from ldm.device import pick_device, pick_dtype
from ldm.files import named_failure, read_json
from ldm.registry.models import existing_folder

log = logging.getLogger(__name__)

IGNORED = -100  # label of tokens that no loss is computed for
CLIP_VISION = "clip_vision_model"  # has one class token, which LLaVA's "default" selection drops again


@dataclass(frozen=True, eq=False)
class Mllm:
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


def load_mllm(folder: Path | str, device: str = "auto", dtype: str = "auto", load_in: str = "") -> Mllm:
    """A model folder, strictly: a weight that is missing, unexpected or of another shape is a ValueError.

    device: auto, cuda, mps or cpu. dtype: fp32, fp16, bf16, or auto, see `pick_dtype`. load_in: 4bit or 8bit
    """
    folder, target = Path(folder), pick_device(device)
    kind = pick_dtype(dtype, target, folder)
    if load_in and not four_bit_works():
        raise ValueError(f"{load_in} weights need a CUDA device and bitsandbytes (requirements-extras.txt)")
    if load_in:
        return load_quantised(folder, kind, load_in, target, kind)
    model = load_model(folder, kind)
    return Mllm(model.to(target), load_processor(folder, model.config), folder)


def four_bit_works() -> bool:
    """4-bit weights need CUDA and bitsandbytes (requirements-extras.txt)."""
    return torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None


@loading()
def load_quantised(
    folder: Path, compute: torch.dtype, load_in: str, device: torch.device, dtype: torch.dtype
) -> Mllm:
    """A model folder with NF4 weights (4bit, QLoRA), or those of LLM.int8 (8bit).

    compute: precision of the arithmetic. dtype: of what is not quantised
    """
    options: dict[str, Any] = {f"load_in_{load_in}": True}
    if load_in == "4bit":
        options |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    way = transformers.BitsAndBytesConfig(**options)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, quantization_config=way, device_map={"": device},
        local_files_only=True)  # fmt: skip
    return Mllm(model.eval(), load_processor(folder, model.config), folder)


def load_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    read_json(existing_folder(folder) / "config.json")
    kind = AutoModelForImageTextToText
    return load_pretrained(kind, folder, exact=True, dtype=dtype, local_files_only=True)


def load_processor(folder: Path, config: Any = None) -> Any:
    """The processor of a folder, with PIL image processing whatever is installed, so that results are equal.

    Without torchvision a processor that also knows videos is loaded without that part. A LLaVA-1.5 processor
    that cuts the sides off a wide image is replaced by one that pads it to a square, as LLaVA was trained.
    """
    existing_folder(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True) if config is None else config
    given: dict[str, Any] = {}  # the first file that says something of a key counts
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            said = read_json(folder / file)
            given = {key: value for key, value in {**said, **given}.items() if value is not None}
    with named_failure(f"{folder}: no usable processor files", OSError, KeyError, ImportError):
        kind = getattr(transformers, str(given.get("processor_class")), transformers.AutoProcessor)
        if not is_torchvision_available():
            kind = images_only(kind)
        processor = kind.from_pretrained(folder, local_files_only=True)
        images = getattr(processor, "image_processor", None)
        if images is not None and not type(images).__name__.endswith("Pil"):
            found: Any = transformers.AutoImageProcessor
            processor.image_processor = found.from_pretrained(folder, backend="pil", local_files_only=True)
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
                do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side},
                image_mean=images.image_mean, image_std=images.image_std, resample=images.resample,
            )  # fmt: skip
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    return processor


def images_only(kind: Any) -> Any:
    """A processor class without its video part, which needs torchvision; the class itself if it has none."""
    if "video_processor" not in inspect.signature(kind.__init__).parameters:
        return kind
    if issubclass(kind, transformers.SmolVLMProcessor):
        # The same processor of images, before it learnt videos; the name is what a saved folder says.
        return type(kind.__name__, (transformers.Idefics3Processor,), {})
    parts = ["image_processor", "tokenizer"]  # loaded, and kept of what the family's __init__ hands on
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: parts)})


def end_token(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no end-of-sequence token (eos_token), so no answer could end")
    return int(tokenizer.eos_token_id)


@dataclass(frozen=True, eq=False)
class ChatExample:
    """A question about an image, and in training its answer."""

    image_u8: np.ndarray  # RGB (h, w, 3) uint8
    question: str
    answer: str | None = None


class Chat:
    """A processor with its chat template, or with another one. Answers end with the tokenizer's
    end-of-sequence token, also where the template leaves it out, so that a trained model stops.
    """

    def __init__(self, processor: Any, template: str | None = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.template = template or processor.chat_template
        if not isinstance(self.template, str):
            raise ValueError("the processor has no chat template; name one of ldm.mllm.templates.TEMPLATES")
        self.end = end_token(self.tokenizer)
        self.ends_itself = True  # until the template shows otherwise
        rendered = self.text(ChatExample(np.zeros((1, 1, 3), np.uint8), "question", "ANSWER"))
        self.ends_itself = self.tokenizer.eos_token in rendered.rpartition("ANSWER")[2]

    def text(self, ask: ChatExample) -> str:
        """The rendered conversation, up to where the model speaks if there is no answer."""
        return self.processor.apply_chat_template(
            self._messages(ask), chat_template=self.template, add_generation_prompt=ask.answer is None,
            tokenize=False)  # fmt: skip

    def prompts(self, asks: Sequence[ChatExample]) -> dict[str, Any]:
        """Model inputs for questions, padded on the left, on the CPU."""
        return dict(self._encode([replace(ask, answer=None) for ask in asks], "left"))

    def examples(self, asks: Sequence[ChatExample]) -> dict[str, Tensor]:
        """Model inputs for training, padded on the right, with `labels` (b, t): the answer's tokens and the
        end, -100 elsewhere. ValueError for an ask without answer, and if no token of it is left to learn.
        """
        if any(ask.answer is None for ask in asks):
            raise ValueError("a training example needs an answer")
        encoded = self._encode(asks, "right")
        batch = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        real = batch["attention_mask"].bool()
        answers = torch.zeros_like(real)  # (b, t), what follows the prompt
        for row, ask in enumerate(asks):
            # The answer holds no image, so its tokens are counted on the texts before images are expanded.
            texts = self.text(ask), self.text(replace(ask, answer=None))
            whole, prompt = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
            common = len(os.path.commonprefix([whole, prompt]))
            length = int(real[row].sum())
            answers[row, length - (len(whole) - common) : length] = True
        batch["labels"] = torch.where(answers & real, batch["input_ids"], IGNORED)
        for ask, labels in zip(asks, batch["labels"], strict=True):
            # A template may write more behind the end, such as a line break.
            if len(ends := (labels == self.end).nonzero()):
                labels[int(ends[-1]) + 1 :] = IGNORED
            if not (labels != IGNORED).any():
                raise ValueError(f"the chat template leaves nothing of the answer {ask.answer!r} to learn")
        return batch

    def _messages(self, ask: ChatExample, pil_image: Image.Image | None = None) -> list[dict[str, Any]]:
        image = {"type": "image"} if pil_image is None else {"type": "image", "image": pil_image}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": ask.question}]}]
        if ask.answer is not None:
            answer = ask.answer if self.ends_itself else ask.answer + self.tokenizer.eos_token
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages

    def _encode(self, asks: Sequence[ChatExample], side: str) -> Mapping[str, Any]:
        return self.processor.apply_chat_template(
            [self._messages(ask, Image.fromarray(ask.image_u8)) for ask in asks],
            chat_template=self.template, add_generation_prompt=asks[0].answer is None, tokenize=True,
            return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": side})  # fmt: skip
