"""Images whose objects are in another order of depth than where they touch the ground says: objects of other
images pasted in at any depth, and the removed solid put behind one that it hides.

So that the network reads order from what hides what. Legend: s scenes, b images, h w pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from einops import rearrange
from numpy.random import Generator

from datasets.scenes.store import OpenShard

Images = tuple[np.ndarray, np.ndarray]  # pixels (b, 3, h, w) uint8, inverse depth (b, h, w) uint16
SIZES = 0.6, 1.8  # of a pasted object; these and the following numbers are chosen for variety
GAP = 0.02, 0.15  # of inverse depth between an object and what is behind it
LEAST = 60  # pixels that a pasted object and an exchanged region have


@dataclass(frozen=True, eq=False)
class Cutouts:
    """Where the objects of rendered scenes are; image 2 i is scene i, 2 i + 1 the same without one solid."""

    labels: np.ndarray  # (s, h, w) uint8, 0 the room, k the visible solid k - 1
    removed: Sequence[int]  # label of the removed solid of each scene
    hidden: np.ndarray  # (s, h, w) bool, part of another solid that the removed one hides
    owners: Sequence[Sequence[int]]  # labels of the movable solids of each scene that show enough

    @classmethod
    def read(cls, shards: Sequence[OpenShard]) -> "Cutouts":
        labels, removed = list[np.ndarray](), list[int]()
        hidden, owners = list[np.ndarray](), list[list[int]]()
        for shard in shards:
            for row, fact in enumerate(shard.facts):
                label, amodal = shard.array("instances_u8", row), shard.array("amodal", row)
                movable = [k for k in range(len(fact.names)) if fact.movable[k]]
                mine = label == fact.removed + 1
                regions = [amodal[k] & mine for k in movable if k != fact.removed]
                labels.append(label)
                removed.append(fact.removed + 1)
                hidden.append(max(regions, key=np.sum, default=np.zeros_like(mine)))
                whole = [k + 1 for k in movable if fact.visible[k] > 0.9]
                owners.append([k for k in whole if (label == k).sum() > LEAST])
        return cls(np.stack(labels), removed, np.stack(hidden), owners)

    def batch(self, images: Images, count: int, rng: Generator, pasted: float, exchanged: float) -> Images:
        """`count` random images; a fraction `pasted` gets up to three objects, `exchanged` another order."""
        pixels_u8, depths = list[np.ndarray](), list[np.ndarray]()
        for index in rng.integers(0, len(images[0]), count):
            scene, rgb_u8 = index // 2, rearrange(images[0][index], "c h w -> h w c").copy()
            depth, kind = images[1][index].astype(np.float32), rng.random()
            if kind < exchanged and index % 2 == 0 and self.hidden[scene].sum() > LEAST:
                region, moved = self.hidden[scene], self.labels[scene] == self.removed[scene]
                rgb_u8[region] = rearrange(images[0][index + 1], "c h w -> h w c")[region]
                depth[region] = images[1][index + 1][region]
                moved &= ~region
                if moved.any():
                    behind = float(np.median(depth[region])) - rng.uniform(*GAP) * 65535
                    depth[moved] -= max(0.0, float(depth[moved].max()) - behind)
            elif kind > 1 - pasted:
                for _ in range(int(rng.integers(1, 4))):
                    self._paste(rgb_u8, depth, images, rng)
            pixels_u8.append(rearrange(rgb_u8, "h w c -> c h w"))
            depths.append(np.clip(depth, 0, 65535).astype(np.uint16))
        return np.stack(pixels_u8), np.stack(depths)

    def _paste(self, rgb_u8: np.ndarray, depth: np.ndarray, images: Images, rng: Generator) -> None:
        """Put an object of a random scene anywhere into an image, before some of what is there."""
        scene, (high, wide) = int(rng.integers(len(self.labels))), depth.shape
        if not self.owners[scene]:
            return
        mask = (self.labels[scene] == int(rng.choice(self.owners[scene]))).astype(np.float32)
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        size, (left, top) = rng.uniform(*SIZES), rng.uniform(0, (wide, high))  # of its middle
        turned = size * rng.choice([-1, 1])
        move = np.array([[turned, 0, left - turned * (x + w / 2)], [0, size, top - size * (y + h / 2)]])
        source = rearrange(images[0][2 * scene], "c h w -> h w c").copy(), mask, images[1][2 * scene]
        colour, cover, relief = (cv2.warpAffine(layer, move, (wide, high)) for layer in source)
        inside = cover > 0.5
        if inside.sum() < LEAST:
            return
        away = np.quantile(depth[inside], rng.uniform(0.4, 1)) + rng.uniform(*GAP) * 65535
        relief = relief - np.median(relief[inside]) + away
        cover = np.where(relief > depth, cover, 0)
        rgb_u8[:] = np.round(rgb_u8 * (1 - cover[..., None]) + colour * cover[..., None])
        depth[cover > 0.5] = relief[cover > 0.5]
