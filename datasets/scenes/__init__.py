"""Rendered tabletop scenes with exact masks, depth, relations and counterfactuals: docs/scenes.md."""

from typing import TYPE_CHECKING

from datasets.scenes.settings import EVAL_BIT, SceneOptions, eval_seed, train_seed  # noqa: F401
from ldm.settings.later import later_names

if TYPE_CHECKING:
    from datasets.scenes.batch import SceneBatch, SceneFacts, render  # noqa: F401
    from datasets.scenes.describe import Scene, SceneRejected  # noqa: F401
    from datasets.scenes.layout import sample_scene  # noqa: F401

LATER = dict.fromkeys(("SceneBatch", "SceneFacts", "render"), "batch")
LATER |= {"Scene": "describe", "SceneRejected": "describe", "sample_scene": "layout"}
__getattr__ = later_names(__name__, LATER)
