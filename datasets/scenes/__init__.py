"""Rendered tabletop scenes with exact masks, depth, relations and counterfactuals.

options = SceneOptions(size=(128, 128))
batch = render([sample_scene(train_seed(i), options) for i in range(8)], options)
"""

from datasets.scenes.batch import SceneBatch, SceneFacts, render
from datasets.scenes.describe import EVAL_BIT, Scene, SceneOptions, SceneRejected, eval_seed, train_seed
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
