"""Rendered tabletop scenes with exact masks, depth, relations and counterfactuals.

options = SceneOptions(size=(128, 128))
batch = render([sample_scene(train_seed(i), options) for i in range(8)], options)
"""

from typing import TYPE_CHECKING

from datasets.scenes.settings import EVAL_BIT, SceneOptions, eval_seed, train_seed
from ldm.settings.later import later_names

if TYPE_CHECKING:
    from datasets.scenes.batch import SceneBatch, SceneFacts, render
    from datasets.scenes.describe import Scene, SceneRejected
    from datasets.scenes.layout import sample_scene

__all__ = [
    "EVAL_BIT",
    "SceneRejected",
    "Scene",
    "SceneBatch",
    "SceneFacts",
    "SceneOptions",
    "eval_seed",
    "render",
    "sample_scene",
    "train_seed",
]
__getattr__ = later_names(
    __name__,
    {
        **dict.fromkeys(("SceneBatch", "SceneFacts", "render"), "batch"),
        **dict.fromkeys(("Scene", "SceneRejected"), "describe"),
        "sample_scene": "layout",
    },
)
