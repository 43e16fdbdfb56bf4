"""What is rendered, and where it goes."""

from dataclasses import dataclass
from pathlib import Path

from ldm.result import overwrite_setting
from ldm.settings.choices import Divided, shard_of
from ldm.settings.schema import check_settings, setting

EVAL_BIT = 1 << 40


def train_seed(index: int) -> int:
    """Seed of training scene `index` (0 ... 2^40 - 1)."""
    if not 0 <= index < EVAL_BIT:
        raise ValueError(f"scene index must lie in [0, 2^40), got {index}")
    return index


def eval_seed(index: int) -> int:
    """Seed of evaluation scene `index`: the bit 2^40 is set, so it is never a training seed."""
    return EVAL_BIT | train_seed(index)


@dataclass(frozen=True)
class SceneOptions:
    """What is rendered. Training renders window "object", every other use "full"."""

    size: tuple[int, int] = setting((128, 128), help="height,width of every view", low=16, high=4096)
    supersample: int = setting(1, help="rays per pixel and axis, 2 for best quality", low=1, high=2)
    smooth_edges: bool = setting(True, help="at supersample 1, four rays in the pixels that need them")
    objects: tuple[int, int] = setting((2, 6), help="least,most solids, tables not counted", low=2, high=8)
    window: str = setting("full", help="full view, or a square round the solid", choices=("full", "object"))
    reference_size: tuple[int, int] = setting((112, 112), low=16, high=4096,
        help="height,width of the reference view, equal")  # fmt: skip
    reference_pose: str = setting(
        "mixed", choices=("same", "other", "mixed"),
        help="pose of the reference: as in the scene, another within 30 degrees, or half and half",
    )  # fmt: skip
    furniture: float = setting(0.45, help="fraction of scenes with a table or a low platform", low=0, high=1)
    occluded: float = setting(0.42, help="fraction of scenes that hide the object partly", low=0, high=1)
    world: str = setting("plain", choices=("plain", "wide", "open"),
        help="wide: more solids and patterns; open: also outdoors, any camera, more surfaces")  # fmt: skip
    cutouts: Path | None = setting(None,
        help="folder of images with alpha that stand in the open world; NAME-x is left out")  # fmt: skip
    renderer: str = setting("builtin", choices=("builtin", "mitsuba"),
        help="mitsuba: images by its path tracer, about 100 times slower; plain and wide world")  # fmt: skip
    chunk: int = setting(0, help="views rendered together; 0 is 1 on a CPU, 32 on an accelerator", low=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.window == "object" and self.size[0] != self.size[1]:
            raise ValueError(f"window object needs a square size, got {self.size}")
        if self.reference_size[0] != self.reference_size[1]:
            raise ValueError(f"reference_size must be square, got {self.reference_size}")
        if self.objects[0] > self.objects[1]:
            raise ValueError(f"objects must be (least, most), got {self.objects}")
        if self.cutouts and self.world != "open":
            raise ValueError("cutouts stand in the open world only: add world open")
        if self.renderer == "mitsuba" and self.world == "open":
            raise ValueError("renderer mitsuba knows the plain and the wide world, not the open one")


@dataclass(frozen=True)
class StoreSettings(SceneOptions, Divided):
    out: Path = setting(Path("outputs/scenes"), help="folder of the shards")
    count: int = setting(1024, help="scenes in all shards", low=1)
    first_seed: int = setting(0, help="index of the first scene within its split", low=0)
    split: str = setting("train", help="seeds of the two splits never meet", choices=("train", "eval"))
    device: str = setting("cpu", help="cpu, cuda or mps")

    def __post_init__(self) -> None:
        super().__post_init__()
        train_seed(self.first_seed + self.count - 1)
        shard_of(self.shard)


@dataclass(frozen=True)
class SheetSettings(SceneOptions):
    """Which scenes are shown, and where the image goes. Evaluation seeds."""

    size: tuple[int, int] = setting((224, 224), help="height,width of every view", low=16, high=4096)
    supersample: int = setting(2, help="rays per pixel and axis, 2 for best quality", low=1, high=2)
    out: Path = setting(Path("outputs/scenes.png"), help="PNG to write")
    overwrite: bool = overwrite_setting()
    count: int = setting(8, help="scenes, one row each", low=1, high=64)
    first_seed: int = setting(0, help="index of the first evaluation scene", low=0)
    device: str = setting("cpu", help="cpu, cuda or mps")
