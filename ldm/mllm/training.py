"""Training of image-and-text models: LoRA on the language model, the projector beside it (peft), the loss.

Adapter folders are peft's own, so peft loads them too. Legend: b rows of a batch, t tokens.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from ldm.checkpoints import check_weights, drawing, folder_written_whole, loading, read_weights
from ldm.files import first_line, read_json
from ldm.mllm.model import IGNORED
from ldm.settings.config import write_config
from ldm.training.run import Layout
from ldm.training.settings import LoraSettings

LANGUAGE = ("language_model", "text_model")  # what families call their language model
PROJECTORS = ("multi_modal_projector", "visual.merger", "connector")  # and what maps images into it
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Beginnings of the original names, and of those of transformers before 5 -> today's.
RENAMES = {
    r"model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"(?:model\.)?vision_tower\.(?:(?:vision_tower\.)?vision_model\.)?": "model.vision_tower.",
    r"language_model\.model\.|model\.(?=(?:embed_tokens|layers|norm)\.)": "model.language_model.",
    r"(?:language_)?model\.lm_head\.": "lm_head.",
    r"(?=multi_modal_projector\.|image_newline|visual\.)": "model.",  # the last is Qwen2.5-VL's
}
PEFT = "base_model.model."  # before the names of a model with an adapter


def make_trainable(
    model: Any, settings: LoraSettings, seed: int = 0, gradient_checkpointing: bool = False
) -> nn.Module:
    """The model with LoRA (a PeftModel), or itself for rank 0; only what is trained requires gradients.

    seed: of the initial LoRA matrices. Trained weights are single precision. ValueError for an unknown name.
    """
    projectors = [name for name, _ in model.named_modules() if is_projector(f"{name}.")]
    if not projectors:
        raise ValueError(f"the model has no part called {' or '.join(PROJECTORS)}")
    model.config.use_cache = False
    if gradient_checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    projector = min(projectors, key=len)
    if settings.rank == 0:
        model.requires_grad_(False)
        trained = [module for name, module in model.named_modules() if name.split(".")[-1] in LANGUAGE]
        if not trained:
            raise ValueError(f"the model has no part called {' or '.join(LANGUAGE)}")
        head = model.get_output_embeddings()
        trained += [head] if head is not None else []
        trained += [model.get_submodule(projector)] if settings.projector else []
        for module in trained:
            module.requires_grad_(True)
    else:
        kinds = "|".join(re.escape(kind) for kind in settings.targets)
        pattern = rf".*\b({'|'.join(LANGUAGE)})\..*\.({kinds})"  # the vision tower has equal names
        found = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
        if lost := sorted(set(settings.targets) - found):
            raise ValueError(f"targets: the language model has no layer called {', '.join(lost)}")
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, bias="none",
            init_lora_weights="gaussian" if settings.init == "gaussian" else True, target_modules=pattern,
            modules_to_save=[projector] if settings.projector else None)  # fmt: skip
        with drawing(seed, next(model.parameters()).device):
            model = get_peft_model(model, config)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def is_projector(parameter: str) -> bool:
    return any(f".{part}." in f".{parameter}" for part in PROJECTORS)


def adapter_key(parameter: str) -> str:
    """Name of a trained parameter of a PeftModel -> its key in an adapter file."""
    return re.sub(r"\.(?:modules_to_save\.)?default(?=\.)", "", parameter)


def today(key: str) -> str:
    """A weight's name in any of the layouts -> its name in transformers 5."""
    name = key.removeprefix("base_model.")
    while name.startswith("model.model."):
        name = name.removeprefix("model.")
    for old, new in RENAMES.items():
        name = re.sub(f"^(?:{old})", new, name)
    return name


def current_name(name: str) -> str:
    """The same of a layer or weight, behind the prefix of peft if it has one."""
    prefix = PEFT if name.startswith(PEFT) else ""
    return prefix + today(f"{name.removeprefix(PEFT)}.")[:-1]


@loading()
def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """An adapter folder on its base model; ValueError where a tensor is not used or a matrix not filled."""
    stored, config = read_adapter(folder), LoraConfig.from_pretrained(str(folder))
    config.inference_mode, config.task_type = False, None  # without a task all inputs are passed on
    config.base_model_name_or_path = None  # peft warns where it is another one
    if not isinstance(config.target_modules, str):
        config.target_modules = {current_name(name) for name in config.target_modules or ()}
    config.modules_to_save = [current_name(name) for name in config.modules_to_save or ()] or None
    try:
        wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{folder}: its layers are not those of this model ({first_line(error)})") from None
    fill_adapter(wrapped, stored, f"{folder}: not an adapter of this model")
    return wrapped


def continue_adapter(model: PeftModel, folder: Path) -> None:
    """Fill the adapter that trains with that of a folder; ValueError where its settings are others."""
    stored = read_adapter(folder)
    config, mine = LoraConfig.from_pretrained(str(folder)), model.peft_config["default"]
    theirs, ours = (one.lora_alpha / one.r ** (0.5 if one.use_rslora else 1) for one in (config, mine))
    if theirs != ours:
        raise ValueError(f"{folder}: its LoRA scale is {theirs:g}, lora.alpha / lora.rank is {ours:g}")
    fill_adapter(model, stored, f"{folder}: not an adapter of these lora settings")


def fill_adapter(model: nn.Module, stored: Mapping[str, Tensor], where: str) -> None:
    """Copy the weights of an adapter file, all of them, into the parameters that train."""
    parameters = {adapter_key(name): value for name, value in model.named_parameters() if value.requires_grad}
    check_weights(parameters, stored, where)
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(stored[key])


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter folder under today's names; ValueError for another folder."""
    read_json(folder / ADAPTER_CONFIG)
    file = next((path for name in (ADAPTER, "adapter_model.bin") if (path := folder / name).is_file()), None)
    if file is None or (folder / "non_lora_trainables.bin").is_file():
        wrong = f"{folder}: not an adapter of this repository or of peft ({ADAPTER}); one in the original"
        raise ValueError(f"{wrong} LLaVA layout is merged by python -m llava_bifrost.model convert")
    return {current_name(key): value for key, value in read_weights(file).items()}


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor], seeds: list[int]) -> Tensor:
    """Cross entropy of the answers' tokens, (). The vocabulary is scored at their positions only."""
    dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    # The token after each, (b, t).
    labels = functional.pad(inputs.pop("labels"), (0, 1), value=IGNORED)[:, 1:]
    places = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
    logits = model(**inputs, use_cache=False, logits_to_keep=places).logits  # (b, places, v)
    scores, wanted = logits.flatten(0, 1).float(), labels[:, places].flatten()
    return functional.cross_entropy(scores, wanted, ignore_index=IGNORED)


def save_model(model: Any, processor: Any, folder: Path, name: str, config: Any) -> None:
    """A trained model's folder, with its processor and `config` as the file `name`; whole or not at all."""
    model.config.use_cache = True
    with folder_written_whole(folder) as partial:
        model.save_pretrained(partial)
        processor.tokenizer.backend_tokenizer.no_padding()  # of the last answers
        processor.save_pretrained(partial)
        write_config(partial / name, config)


def adapter_layout(model: nn.Module, beside: Callable[[Path], None] = lambda folder: None) -> Layout:
    """Checkpoints hold adapter/ as peft writes it. beside: writes what else belongs into that folder."""

    def write(folder: Path) -> None:
        if isinstance(model, PeftModel):
            model.peft_config["default"].save_pretrained(str(folder / "adapter"))
        beside(folder / "adapter")

    return Layout(f"adapter/{ADAPTER}", adapter_key, write)
