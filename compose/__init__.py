"""From two images, or a job, to a composite: the one place where the products meet.

models = load_models(settings)
result = compose(settings, models)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compose.models import load_models
    from compose.pipeline import compose
    from compose.settings import ComposeSettings

__all__ = ["ComposeSettings", "compose", "load_models"]
HOMES = {"ComposeSettings": "settings", "compose": "pipeline", "load_models": "models"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
