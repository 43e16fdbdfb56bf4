"""The options of the locator's commands; training and its folders have theirs in train.py and model.py."""

from dataclasses import dataclass, fields
from pathlib import Path

from datasets.relations import DEPTH_STEP
from ldm.files import located
from ldm.mllm.templates import TEMPLATES
from ldm.registry.models import DEFAULT_DEPTH, resolve_model_path
from ldm.result import overwrite_setting
from ldm.settings.choices import DEVICES, FLOAT_TYPES, Divided
from ldm.settings.config import CheckedSettings, setting
from llava_bifrost.language.instruction import CODECS, FORMATS

FULL, TINY = Path("models/locator"), Path("assets/tiny/locator")
SMALLER, SMALLER_HELP = ("", "4bit", "8bit"), "the locator with smaller weights; needs CUDA and bitsandbytes"
GEOMETRIC = "geometric"  # the locator that is no folder


@dataclass(frozen=True)
class LocatorConfig(CheckedSettings):
    """How a locator is asked and how it answers: locator.json."""

    format: str = setting("center", choices=FORMATS)
    codec: str = setting("bifrost", choices=CODECS, help="see codec.py")
    decimals: int = setting(3, low=2, high=4, help="of its numbers")
    template: str | None = setting(None, choices=TEMPLATES, help="chat template instead of the processor's")
    names: tuple[str, ...] = setting((), help="the objects it knows, where these are few")
    notice: str = ""


@dataclass(frozen=True, kw_only=True)
class LocatorOptions(CheckedSettings):
    locator: str | None = setting(
        None,
        help="what reads the sentence: a locator folder, or geometric (rules and --anchors or --detector); "
        f"without it {FULL.as_posix()} if it is there, else geometric if --anchors or --detector is "
        f"given, else {TINY.as_posix()}, which knows rendered objects only",
    )
    anchors: Path | None = setting(None, help="JSON of objects, as llava_bifrost.predict anchors writes it")
    detector: Path | None = setting(
        None,
        help="folder of a GroundingDINO, OWL-ViT or OWLv2 that finds the objects the sentence names, or "
        "builtin: a rough one (python -m ldm.registry pull builtin-detector, and u2netp)",
    )
    load_in: str = setting("", choices=SMALLER, help=SMALLER_HELP)
    candidates: int = setting(1, low=1, high=64, help="places that the locator proposes; the best is used")
    relative_size: float | None = setting(
        None,
        low=0.02,
        high=50,
        help="geometric locator: size of the object relative to the first object named, at equal "
        "distance; without it from neighbours and a table of nouns",
    )

    @property
    def locator_name(self) -> str:
        """The locator to use: a folder's name, or GEOMETRIC."""
        full = resolve_model_path(FULL)
        if self.locator is not None:
            return self.locator
        if (full / "config.json").is_file():
            return full.as_posix()
        return located(TINY).as_posix() if self.anchors is None and self.detector is None else GEOMETRIC


WITH_SENTENCE = {field.name: field.default for field in fields(LocatorOptions)}  # they need an instruction


@dataclass(frozen=True, kw_only=True)
class LocatorSettings(LocatorOptions):
    locator: str | None = setting(None, was=("model",), help=fields(LocatorOptions)[0].metadata["help"])
    sam: Path | None = setting(None, help="SAM folder: its mask of a detected object decides the depth")
    aspect: float = setting(1.0, low=0.02, high=50, help="geometric locator: width / height of the object")
    temperature: float = setting(1.0, low=0.05, high=5, help="of the draws after the first, greedy answer")
    seed: int = setting(0, low=0, help="seed of the draws")
    depth_model: Path | None = setting(None, help="depth network folder, to rank places and for anchors")
    device: str = setting("auto", choices=DEVICES, help="where the networks run")
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the networks")


@dataclass(frozen=True, kw_only=True)
class PredictImage(LocatorSettings):
    image: Path = setting(help="image of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the image, bright = near, to rank several places")
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the image")
    overwrite: bool = overwrite_setting()


@dataclass(frozen=True, kw_only=True)
class PredictJobs(LocatorSettings, Divided):
    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")


@dataclass(frozen=True, kw_only=True)
class NamedBoxes(CheckedSettings):
    objects: tuple[str, ...] = setting(
        aliases=("NAME=X1,Y1,X2,Y2[,DEPTH]...",), help="name, box and depth (1 = nearest); fractions or 120px"
    )
    image: Path = setting(help="image of the background")
    out: Path = setting(help="JSON file to write, for --anchors; OUT_boxes.png shows the boxes on the image")


@dataclass(frozen=True)
class LocatorEvaluation(CheckedSettings):
    model: Path = setting(Path("assets/tiny/locator"), help="folder of the locator")
    out: Path = setting(Path("outputs/locator.json"), help="numbers; .txt and .png are written beside it")
    overwrite: bool = overwrite_setting()
    dataset: Path | None = setting(
        None,
        help="dataset file of build_dataset; JSONL of image, sentence and mask of the right places; folder "
        "Placement of RefSpatial-Bench; without it rendered scenes",
    )
    scenes: int = setting(1024, help="held-out scenes, or records of the dataset", low=1)
    first_scene: int = setting(0, help="number of the first held-out scene", low=0)
    data: Path = setting(Path("data/scenes/views_eval"), help="held-out scenes; rendered if missing")
    blind: Path | None = setting(None, help="folder of a locator that was trained without images")
    candidates: int = setting(8, help="also measure re-ranking and best of this many; 0: not", low=0)
    ranked: int = setting(128, help="scenes on which that is done", low=1)
    batch: int = setting(16, help="questions answered together", low=1)
    device: str = setting("auto", choices=DEVICES, help="where the locator runs")
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the locator")
    load_in: str = setting("", choices=SMALLER, help=SMALLER_HELP)
    seed: int = setting(0, help="of the questions and controls", low=0)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(CheckedSettings):
    folder: Path = setting(aliases=("FOLDER",), help="locator folder, such as a released one after `convert`")
    images: Path = setting(Path("assets/examples"), help="folder of images, searched with its folders")
    sentences: tuple[str, ...] = setting((), help="what is asked; without it simple ones with names it knows")
    count: int = setting(16, low=2, help="images that are used, as far as there are so many")
    out: Path | None = setting(None, help="JSON file of the report")
    overwrite: bool = overwrite_setting()
    device: str = setting("auto", choices=DEVICES, help="where the locator runs")
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the locator")
    load_in: str = setting("", choices=SMALLER, help=SMALLER_HELP)


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Divided):
    """Where the data set goes and how its answers look; shared by all sources."""

    out: Path = setting(help="folder of the data set")
    format: str = setting("center", choices=FORMATS, help="depths of an answer: one, or max, median and min")
    decimals: int = setting(3, low=2, high=6, help="of the numbers in an answer")
    seed: int = setting(0, low=0, help="of all random choices")


@dataclass(frozen=True)
class MergeShardsSettings(CheckedSettings):
    out: Path = setting(help="folder that the shards were built into")


@dataclass(frozen=True)
class Thresholds(CheckedSettings):
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
    most: int = setting(3, low=1, high=5, help="most relations of an instruction")
    reach: float = setting(0.3, low=0, high=1, help="largest gap between two boxes, either axis")
    depth_step: float = setting(0.1, low=0, high=1, help="least difference of depths for in front of, behind")
    same_depth: float = setting(0.05, low=0, high=1, help="largest difference for on, above, under")
    between: bool = setting(True, help="also state that an object is between two others")


@dataclass(frozen=True, kw_only=True)
class CocoBuild(OutputSettings):
    images: Path = setting(help="folder of the images")
    annotations: Path = setting(help="instances JSON file in the format of COCO")
    eraser: str = setting(
        "opencv",
        help="LaMa file (TorchScript), diffusers inpainting folder, exemplar (copies texture), opencv; auto: "
        "the first of these that is there",
    )
    depth: str | None = setting(None, help=f"depth network, folder or hub name; {DEFAULT_DEPTH}")
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
    scenes: Path = setting(help="folder of shards made by `python -m datasets.scenes render`")
    questions: int = setting(3, low=0, help="most different Place questions of a scene")
    replace: int = setting(1, low=0, help="Replace questions of a scene, about solids that stand free")
    placements: int = setting(3, low=0, help="Place questions of a scene about new objects; full views only")
    visible: float = setting(0.4, low=0, high=1, help="least visible fraction of a solid that is named")
    area: float = setting(0.004, low=0, high=1, help="least fraction of the image of a solid that is named")
    relations: RelationRules = setting(
        RelationRules(reach=0.5, depth_step=DEPTH_STEP, same_depth=1), help="what is stated of a solid"
    )
