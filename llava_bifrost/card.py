"""What a locator's folder says about itself: locator.json beside the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ldm.files import read_json, write_atomic
from ldm.mllm.templates import TEMPLATES
from ldm.registry.models import resolve_model_path
from ldm.settings.config import to_plain
from llava_bifrost.language.codec import FAMILIES, Codec

CARD = "locator.json"
FULL, TINY = Path("models/locator"), Path("assets/tiny/locator")


@dataclass(frozen=True)
class LocatorConfig:
    """How a locator is asked and how it answers.

    format: center or maxmedmin. codec: see codec.py. decimals: of its numbers. template: chat template of
    ldm.mllm.templates instead of the processor's own. names: the things it knows, where these are few.
    """

    format: str = "center"
    codec: str = "bifrost"
    decimals: int = 3
    template: str | None = None
    names: tuple[str, ...] = ()
    notice: str = ""

    def __post_init__(self) -> None:
        if self.template is not None and self.template not in TEMPLATES:
            allowed = ", ".join(TEMPLATES)
            raise ValueError(f"unknown chat template {self.template!r}; allowed: {allowed}")
        self.make_codec()

    def make_codec(self) -> Codec:
        return Codec(self.codec, self.format, self.decimals)


def read_card(folder: Path, family: str) -> LocatorConfig:
    """The card of a folder; without one, what the family (transformers' model type) starts from."""
    path = folder / CARD
    if not path.is_file():
        return LocatorConfig(codec=FAMILIES.get(family, "bifrost"))
    values: dict[str, Any] = read_json(path)
    known = {item.name for item in fields(LocatorConfig)}
    values = {key: value for key, value in values.items() if key in known}
    values["names"] = tuple(values.get("names", ()))
    try:
        return LocatorConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_card(folder: Path, card: LocatorConfig) -> None:
    """Add the card to a folder."""
    write_atomic(folder / CARD, (json.dumps(to_plain(card), indent=1) + "\n").encode())


def default_folder() -> Path:
    """models/locator where it is there, else the small one of the bundle."""
    full = resolve_model_path(FULL)
    return full if (full / "config.json").is_file() else TINY
