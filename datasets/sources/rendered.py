"""Rendered scenes as a source: the only one whose background under the object is known (a counterfactual).

One example: background = the scene without the object, target = the scene with it, reference = the object
alone under another lamp, box and depth range = the true ones.  The depth hint is the background's depth fused
with the reference's, as at inference; the target's own depth is shown only by option.
"""

import math
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from datasets.augment import mirror, permute_colours, relight_room
from datasets.base import BOTH
from datasets.inputs import Inputs
from datasets.scenes.batch import SceneFacts
from datasets.scenes.store import OpenShard, depth_01

# Fractions of the examples; chosen.
OWN_DEPTH = 0.5  # show the reference's own depth map; the others let it bulge
OUTLINE = 0.5  # give the true visible outline, for the mask levels
MIRRORED = 0.5
OTHER_COLOURS = 0.25  # have their colour channels in another order everywhere
OTHER_LAMP = 0.4  # have their room in light of another strength and colour


def shard_files(folder: Path, module: str = "datasets.scenes render") -> list[Path]:
    """The shards of a folder in order. module: what makes them, as an error says."""
    files = sorted(folder.glob("shard-*.safetensors"))
    if not files:
        command = f"python -m {module} --out {folder}"
        raise ValueError(f"{folder}: no shards of rendered scenes; make them with `{command}`")
    return files


def read_images(folder: Path, names: tuple[str, ...] = ("image",)) -> np.ndarray:
    """(n, h, w, 3) uint8: views `image` and `without` of all scenes of a folder, one after the other."""
    shards = [OpenShard(path) for path in shard_files(folder)]
    return np.concatenate([shard.array(f"{name}_u8") for shard in shards for name in names])


class RenderedScenes:
    """All scenes of a folder, read when asked for. augment: mirror half of the examples, vary colours and
    light of some; true_depth: the hint shows the true image's depth.
    """

    dynamics = BOTH  # other lamp, often another pose

    def __init__(self, folder: Path, *, augment: bool = True, true_depth: bool = False) -> None:
        self.shards = [OpenShard(path) for path in shard_files(folder)]
        self.ends = list(accumulate(len(shard.facts) for shard in self.shards))
        self.augment, self.true_depth = augment, true_depth

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[OpenShard, int]:
        """The shard of a scene and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        which = bisect_right(self.ends, index)
        return self.shards[which], index - (self.ends[which - 1] if which else 0)

    def facts(self, index: int) -> SceneFacts:
        shard, row = self.locate(index)
        return shard.facts[row]

    def array(self, name: str, index: int) -> np.ndarray:
        """One scene's row of an array of `datasets.scenes.store.Shard`."""
        shard, row = self.locate(index)
        return shard.array(name, row)

    def silhouette(self, index: int) -> np.ndarray:
        """(h, w) bool: the visible part of the object in the true image."""
        return self.array("instances_u8", index) == self.facts(index).removed + 1

    def inputs(self, index: int, *, own_depth: bool = False, silhouette: bool = False) -> Inputs:
        """The example as it is. silhouette: give the true visible outline, for the mask levels."""
        shard, row = self.locate(index)
        fact = shard.facts[row]
        return Inputs(
            reference_u8=shard.array("reference_u8", row), reference_mask=shard.array("reference_mask", row),
            background_u8=shard.array("without_u8", row),
            background_depth_01=depth_01(shard.array("without_depth_u16", row)),
            box01_xyxy=fact.boxes01[fact.removed], depth_range=fact.depths[fact.removed][1:],  # far, near
            target_u8=shard.array("image_u8", row),
            target_depth_01=depth_01(shard.array("depth_u16", row)) if self.true_depth else None,
            reference_depth_01=depth_01(shard.array("reference_depth_u16", row)) if own_depth else None,
            target_mask=self.silhouette(index) if silhouette else None)  # fmt: skip

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        """Inputs with random decisions: outline of the cut-out or the true one, symmetries of the whole."""
        inputs = self.inputs(index, own_depth=rng.random() < OWN_DEPTH, silhouette=rng.random() < OUTLINE)
        if not self.augment:
            return inputs
        if rng.random() < MIRRORED:
            inputs = mirror(inputs)
        if rng.random() < OTHER_COLOURS:
            inputs = permute_colours(inputs, rng.permutation(3).tolist())
        if rng.random() < OTHER_LAMP:  # darker more often than lighter, seldom colourful
            strength = rng.uniform(math.log(0.55), math.log(1.25))
            colour = rng.uniform(-0.8, 0.3, 3) * rng.random() ** 2
            inputs = relight_room(inputs, np.exp(strength + colour).tolist())
        return inputs
