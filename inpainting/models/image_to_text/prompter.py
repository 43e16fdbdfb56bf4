"""What a prompt writer's folder says about itself: prompter.json beside the weights or the adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from inpainting.models.image_to_text.adapter import base_of, is_adapter
from inpainting.prompts import COLORS, TEMPLATE
from ldm.files import read_json, write_atomic
from ldm.mllm.templates import TEMPLATES
from ldm.registry.models import model_folder, resolve_model_path
from ldm.settings.config import Layer, check_settings, merge_layers, setting, to_plain

CARD = "prompter.json"
FULL = Path("models/llava/multimask/checkpoint-2884/adapter")
TINY = Path("assets/tiny/prompter")
QUESTIONS = ("discover", "gray", "plain")
LLAVAS = ("llava", "llava_next")  # families whose images stand in a text as <image>


@dataclass(frozen=True)
class PrompterConfig:
    """How a prompt writer is asked; a folder without card is asked as the released MultiMask adapter."""

    name: str = setting("prompt writer", help="short name for logs and recipes")
    notice: str = setting("", help="said once when the model is loaded")
    colors: tuple[str, ...] = setting(tuple(COLORS), help="colours of masks that it knows")
    question: str = setting(
        "discover",
        choices=QUESTIONS,
        help="discover: all masks in colours (MultiMask); gray: each alone in gray (1Mask); plain: the same, "
        "and the whole answer is the prompt (a model without adapter)",
    )
    template: str = setting("", help="chat template in ldm.mllm.templates; empty: as published")
    longest: int = setting(64, low=1, help="most tokens of one prompt")

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = [name for name in self.colors if name not in COLORS]
        if unknown or not self.colors or len(set(self.colors)) < len(self.colors):
            known = ", ".join(COLORS)
            raise ValueError(f"colors must be different names among {known}; got {', '.join(self.colors)}")
        if self.template and self.template not in TEMPLATES:
            raise ValueError(f"unknown template {self.template!r}; allowed: {', '.join(TEMPLATES)}")

    def template_for(self, family: str) -> str | None:
        """Chat template for a family of models; None for the processor's own."""
        if self.template:
            return TEMPLATES[self.template]
        return TEMPLATES[TEMPLATE] if family in LLAVAS else None


def read_card(folder: Path) -> PrompterConfig:
    """The card of a folder; default values where it has none. ValueError names file and key."""
    path = folder / CARD
    layers = [Layer(read_json(path), f"{path}: ")] if path.is_file() else []
    return merge_layers(PrompterConfig, layers, where=f"{path}: ")


def write_card(folder: Path, card: PrompterConfig) -> None:
    """Add the card to a folder."""
    write_atomic(folder / CARD, (json.dumps(to_plain(card), indent=1) + "\n").encode())


@dataclass(frozen=True)
class Files:
    """Where a prompt writer lies: its model, its adapter if it has one, and what its card says."""

    model: Path
    adapter: Path | None
    card: PrompterConfig


def find_files(folder: Path | str, adapter: Path | str | None = None) -> Files:
    """The parts of a prompt writer, without loading weights.

    folder: of a model, or its hub name; or of an adapter, which names its model itself. adapter: added to the
    model; its card counts where both have one. ValueError names what is missing.
    """
    if adapter is None and is_adapter(Path(folder)):
        adapter, folder = folder, base_folder(base_of(Path(folder)))
    model = model_folder(str(folder))
    if not (model / "config.json").is_file():
        raise ValueError(f"{folder}: no prompt writer there (config.json is missing)")
    own = None if adapter is None else Path(adapter)
    if own is not None and not is_adapter(own):
        raise ValueError(f"{own}: no adapter there (adapter_config.json is missing)")
    return Files(model, own, read_card(own if own is not None and (own / CARD).is_file() else model))


def base_folder(name: str) -> str:
    """The model that an adapter names: its hub name, or where the registry put the files of that name."""
    local = resolve_model_path(Path("models") / name.rpartition("/")[2])
    return str(local) if not Path(name).is_dir() and (local / "config.json").is_file() else name


def default_folder() -> Path:
    """The released adapter where it is there, else the small model of the bundle."""
    full = resolve_model_path(FULL)
    return full if is_adapter(full) else TINY
