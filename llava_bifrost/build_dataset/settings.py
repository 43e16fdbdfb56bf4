"""What a data set of questions is built from."""

from dataclasses import dataclass
from pathlib import Path

from datasets.relations import DEPTH_STEP
from ldm.settings.config import CheckedSettings, check_settings, setting
from ldm.shards import shard_of
from llava_bifrost.language.instruction import FORMATS


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where the data set goes and how its answers look; shared by all sources."""

    out: Path = setting(help="folder of the data set")
    format: str = setting("center", choices=FORMATS, help="depths of an answer: one, or max, median and min")
    decimals: int = setting(3, low=2, high=6, help="of the numbers in an answer")
    seed: int = setting(0, low=0, help="of all random choices")
    shard: str = setting("0/1", help="i/n: build every n-th chunk, from the i-th; then run merge")

    def __post_init__(self) -> None:
        check_settings(self)
        shard_of(self.shard)


@dataclass(frozen=True)
class MergeShardsSettings(CheckedSettings):
    """Which data set is put together."""

    out: Path = setting(help="folder that the shards were built into")


@dataclass(frozen=True)
class Thresholds(CheckedSettings):
    """Which objects are removed and which are named."""

    target: tuple[float, float] = setting((0.02, 0.6), low=0, high=1, help="target's box over the image")
    anchor: float = setting(0.01, low=0, high=1, help="least box of an anchor, or of a rival for its name")
    solid: float = setting(0.3, low=0, high=1, help="least fraction of its box that the target's mask covers")
    dilate: float = setting(0.02, low=0, high=0.2, help="growth of the hole, in longer sides of the image")
    hole: float = setting(0.6, low=0, high=1, help="largest fraction of the image that is removed")
    remaining: float = setting(0.5, low=0, high=1, help="least fraction of an anchor that the removal leaves")
    leftover: float = setting(0.35, low=0, high=1, help="largest fraction of the target that looks as before")
    depth_error: float = setting(0.05, low=0, high=1, help="largest median difference of the two depth maps")


@dataclass(frozen=True)
class RelationRules(CheckedSettings):
    """What may be stated about an object and its anchors."""

    most: int = setting(3, low=1, high=5, help="most relations of an instruction")
    reach: float = setting(0.3, low=0, high=1, help="largest gap between two boxes, either axis")
    depth_step: float = setting(0.1, low=0, high=1, help="least difference of depths for in front of, behind")
    same_depth: float = setting(0.05, low=0, high=1, help="largest difference for on, above, under")
    between: bool = setting(True, help="also state that an object is between two others")


@dataclass(frozen=True, kw_only=True)
class CocoBuild(OutputSettings):
    """Questions from photographs with instance annotations."""

    images: Path = setting(help="folder of the images")
    annotations: Path = setting(help="instances JSON file in the format of COCO")
    eraser: str = setting("opencv", help="opencv, a LaMa TorchScript file, or a diffusers inpainting folder")
    depth: str = setting("assets/tiny/depth", help="depth network: folder or hub name")
    targets: int = setting(1, low=1, help="most objects of an image that are removed, one at a time")
    replace: float = setting(0.1, low=0, high=1, help="fraction of images that also ask to replace an object")
    published: bool = setting(False, help="the published filters and 2D relation rules, for parity")
    thresholds: Thresholds = setting(Thresholds(), help="which objects are used")
    relations: RelationRules = setting(RelationRules(), help="what is stated of them; not with published")
    batch: int = setting(8, low=1, help="images per chunk, built together")
    workers: int = setting(2, low=1, help="threads that read and fill")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", help="auto, fp32, fp16 or bf16")


@dataclass(frozen=True, kw_only=True)
class ScenesBuild(OutputSettings):
    """Questions from rendered scenes."""

    scenes: Path = setting(help="folder of shards made by `python -m datasets.scenes render`")
    questions: int = setting(3, low=0, help="most different Place questions of a scene")
    replace: int = setting(1, low=0, help="Replace questions of a scene, about solids that stand free")
    placements: int = setting(3, low=0, help="Place questions of a scene about new objects; full views only")
    visible: float = setting(0.4, low=0, high=1, help="least visible fraction of a solid that is named")
    area: float = setting(0.004, low=0, high=1, help="least fraction of the image of a solid that is named")
    relations: RelationRules = setting(
        RelationRules(reach=0.5, depth_step=DEPTH_STEP, same_depth=1), help="what is stated of a solid"
    )
