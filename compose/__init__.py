"""From two images, or a job, to a composite: the one place where the products meet.

settings = ComposeSettings(background=Path("room.png"), object=Path("dog.png"), box=(0.4, 0.5, 0.7, 0.9))
result = compose(settings, load_models(settings))
"""

from typing import TYPE_CHECKING

import ldm as ldm  # first, as Ctrl-C is quiet from there on
from compose.settings import ComposeSettings
from ldm.settings.later import later_names

if TYPE_CHECKING:
    from compose.layering import compose_layers
    from compose.models import load_models
    from compose.pipeline import compose

__all__ = ["ComposeSettings", "compose", "compose_layers", "load_models"]
__getattr__ = later_names(
    __name__, {"compose": "pipeline", "compose_layers": "layering", "load_models": "models"}
)
