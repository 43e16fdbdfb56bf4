"""The released prompt writer's adapter on today's LLaVA-NeXT, whose modules have other names.

The released files name layers `language_model.model.layers...`, transformers 5 names them
`model.language_model.layers...`. Both are read; nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from ldm.checkpoints import read_weights
from ldm.files import first_line, read_json

CONFIG = "adapter_config.json"
OLD, NEW = "language_model.model.", "model.language_model."


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Folder or hub name of the model that an adapter was trained on."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder}/{CONFIG}: names no base_model_name_or_path; set llava_base")
    return base


def renamed(name: str) -> str:
    """Name of a layer, or of one of its weights, in today's model."""
    return name if NEW in name else name.replace(OLD, NEW)


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """Add the adapter of `folder` to a model, strictly.

    Raises ValueError for layers that the model lacks and for weights that are missing or left over.
    """
    values = read_json(folder / CONFIG)
    kept = ["r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern"]
    kept.append("modules_to_save")  # a projector that was trained beside it
    targets = values.get("target_modules") or []
    settings: dict[str, Any] = {name: values[name] for name in kept if name in values}
    settings["target_modules"] = targets if isinstance(targets, str) else [renamed(one) for one in targets]
    weights = {renamed(key): value for key, value in read_weights(folder).items()}
    try:
        adapted = get_peft_model(model, LoraConfig(**settings))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{folder}: its layers are not those of this model ({first_line(error)})") from None
    try:
        report = set_peft_model_state_dict(adapted, weights)
    except RuntimeError as error:  # shapes
        raise ValueError(f"{folder}: its weights are not those of this model ({first_line(error)})") from None
    missing = [key for key in report.missing_keys if "lora_" in key]
    if missing or report.unexpected_keys:
        raise ValueError(
            f"{folder}: {len(missing)} weights missing {missing[:2]}, "
            f"{len(report.unexpected_keys)} unexpected {report.unexpected_keys[:2]}"
        )
    return adapted.eval()
