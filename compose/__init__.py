"""From two images, or a job, to a composite: the one place where the products meet.

models = load_models(settings)
result = compose(settings, models)
"""

from compose.pipeline import compose
from compose.settings import ComposeSettings, load_models

__all__ = ["ComposeSettings", "compose", "load_models"]
