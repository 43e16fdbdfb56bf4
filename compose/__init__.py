"""From two images, or a job, to a composite: the one place where the products meet.

models = load_models(settings)
result = compose(settings, models)
"""

from compose.models import load_models
from compose.pipeline import compose
from compose.settings import ComposeSettings

__all__ = ["ComposeSettings", "compose", "load_models"]
