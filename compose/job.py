"""A job: a background and layers laid over each other, from a YAML or JSON file, Python or sentences.

    background: room.png
    layers:
      - {object: lamp.png, name: lamp, box: [0.1, 0.3, 0.3, 0.8], depth: 0.6}
      - {move: chair, to: to the left of the lamp}
      - {replace: dog, object: cat.png}
      - {erase: vase}
      - {text: a red cube, box: [0.6, 0.5, 0.8, 0.8]}
      - {say: "Remove the plant and move the table behind the sofa"}

A layer takes the settings of the single command that does its work; the job's own keys are their defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compose.settings import DEFAULTS, INPUT_FILES, ComposeSettings
from datasets.geometry import Box01, check_box01
from inpainting.paint import PaintSettings
from ldm.files import excerpt, named_failure, same_file
from ldm.result import overwrite_setting
from ldm.settings.choices import RAY_HELP
from ldm.settings.config import CheckedSettings, Layer, merge_layers, nearest, setting, yaml_layers
from ldm.settings.schema import type_hints
from ldm.temporary import as_file
from llava_bifrost.language.edits import parse_edits, without_article
from llava_bifrost.settings import WITH_SENTENCE, LocatorOptions

KINDS = ("say", "replace", "move", "erase", "text", "object")  # the first key of these is a layer's kind
WHOLE = [0.0, 0.0, 1.0, 1.0]  # stands for a place that is known when the layer's turn comes
FILES = {*INPUT_FILES, "mask", "masks", "anchors"}  # relative to the folder of the job file
JOB_KEYS = {"background", "background_depth", "image", "out", "sheet", "overwrite"}  # of no layer


@dataclass(frozen=True, kw_only=True)
class EraseSettings(LocatorOptions):
    sam: Path | None = setting(None, help="SAM folder that finds the outline of a named object")
    cutout: str = setting("auto", choices=("auto", "u2netp", "grabcut"), help="or U2-Netp, GrabCut")
    erase: str = setting("object", choices=("object", "box"), help="its outline, or all that its box shows")
    eraser: str = setting(
        "auto",
        help="a LaMa TorchScript file, a diffusers inpainting folder, exemplar, or opencv; auto: the "
        "first of them that is there",
    )
    grow: float = setting(0.01, low=0, high=0.2, help="growth of the outline, as a fraction of the image")
    seed: int = setting(0, low=0, high=2**32 - 1, help="of a diffusion model")
    device: str = setting("auto", help="auto, cuda, mps or cpu")


@dataclass(frozen=True, kw_only=True)
class JobLayer:
    """A layer of one kind of `KINDS`; what is erased, moved or replaced is found, or shown by a mask.

    name: what other layers and sentences call what it shows; where: how errors call it
    settings: of the object or the prompts that come; called: the name of what replaces another thing
    depth: of what prompts paint; what is nearer stays
    """

    kind: str
    name: str
    where: str
    settings: ComposeSettings | PaintSettings | None = None
    find: EraseSettings | None = None
    mask: Path | None = None
    called: str = ""
    box: Box01 | None = None
    depth: float | None = None

    @property
    def parts(self) -> list[Any]:
        """The settings of the commands that do the layer."""
        return [part for part in (self.find, self.settings) if part is not None]


SCHEMAS = (ComposeSettings, PaintSettings, EraseSettings)


@dataclass(frozen=True, kw_only=True)
class LayeredJob:
    """base: background, its depth, and the networks of what belongs to no layer. plain: for the recipe."""

    base: ComposeSettings
    layers: tuple[JobLayer, ...]
    plain: dict[str, Any]


@dataclass(frozen=True)
class JobSettings(CheckedSettings):
    job: Path = setting(aliases=("JOB",), help="YAML or JSON file: a background and its layers")
    out: Path = setting(Path("outputs/job.png"), help="image to write (.png, .webp, .jpg)")
    layers: bool = setting(
        False, help="also write NAME_layers.ora and the folder NAME_layers, as `image` does"
    )
    resume: bool = setting(
        False, help="keep the layers in NAME_layers, and take those that nothing has changed for from there"
    )
    ray: str = setting("", help=RAY_HELP)
    overwrite: bool = overwrite_setting()


@dataclass(frozen=True, kw_only=True)
class EditSettings(EraseSettings):
    background: Path = setting(help="image to edit")
    say: str = setting(aliases=("SENTENCES",), help='"Move the lamp behind the sofa. Remove the chair."')
    objects: dict[str, Path] = setting({}, help="images of new objects by name: cat=cat.png,lamp=lamp.png")
    background_depth: Path | None = setting(None, help="depth map, bright = near; without it estimated")
    model: Path | None = setting(None, help="compositor folder, as in the image verb")
    depth_model: Path | None = setting(None, help="depth network folder, as in the image verb")
    inpainter: Path | None = setting(
        None, help="model that paints what is only named, as in inpainting.paint"
    )
    out: Path = setting(Path("outputs/edit.png"), help="image to write (.png, .webp, .jpg)")
    layers: bool = setting(False, help="also write NAME_layers.ora and the folder NAME_layers")
    overwrite: bool = overwrite_setting()

    @property
    def job(self) -> dict[str, Any]:
        """The job with these sentences as its layer."""
        of_job = {entry.name for entry in fields(self)} - {"say", "out", "layers", "overwrite"}
        return {**{name: getattr(self, name) for name in of_job}, "layers": [{"say": self.say}]}


def read_job(source: Mapping[str, Any] | Path | str) -> LayeredJob:
    """A job from a file or a mapping, whose images may be arrays too; all settings are checked.

    ValueError names file, layer and key. Images of a job file start from its folder, networks as elsewhere.
    """
    root, where, values = Path(), "job", source
    if isinstance(source, str | Path):
        root, where = Path(source).parent, str(source)
        values = {key: value for layer in yaml_layers(Path(source)) for key, value in layer.values.items()}
    if not isinstance(values, Mapping) or "background" not in values:
        raise ValueError(f"{where}: missing background (background image, any size)")
    shared = _with_files(values, root)
    entries, objects = shared.pop("layers", None), shared.pop("objects", {})
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"{where}: layers must be a list of layers, got {excerpt(entries)}")
    known = {"inpainter", *(key for schema in SCHEMAS for key in type_hints(schema))}
    if unknown := sorted(shared.keys() - known):
        raise ValueError(f"{where}: {nearest(unknown[0], sorted(known | {'layers', 'objects'}), 'key')}")
    plain, layers = list[dict[str, Any]](), list[JobLayer]()
    for number, entry in enumerate(entries, 1):
        here = f"{where}: layer {number}"
        values = _with_files(entry, root) if isinstance(entry, Mapping) else {}
        if not set(KINDS) & values.keys():
            raise ValueError(f"{here}: a layer has one of {', '.join(KINDS)}, got {excerpt(entry)}")
        text = values.pop("say", None)
        for one in [{}] if text is None else _spoken(str(text), objects, here):
            plain.append({**values, **one})
            layers.append(_read_layer(plain[-1], shared, here))
    names = [layer.name for layer in layers if layer.kind == "object"]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{where}: two objects are called {twice[0]!r}; give each a name of its own")
    base = _settings(ComposeSettings, {"object": shared["background"], "box": WHOLE}, shared, f"{where}: ")
    return LayeredJob(
        base=base, layers=tuple(layers), plain={"shadow": base.shadow, **shared, "layers": plain}
    )


def _with_files(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The values that are given; images in memory become files, and files are found from `root`."""

    def place(key: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [place(key, item) for item in value]
        return same_file(root / as_file(value, key)).as_posix()

    found = {key: value for key, value in values.items() if value is not None}
    for key in FILES & found.keys():
        found[key] = place(key, found[key])
    if objects := found.get("objects"):
        if not isinstance(objects, Mapping):
            raise ValueError(f"objects must be images by name, got {excerpt(objects)}")
        found["objects"] = {plain_name(str(name)): place("objects", file) for name, file in objects.items()}
    return found


def _spoken(text: str, objects: Mapping[str, str], where: str) -> list[dict[str, Any]]:
    """The layers that sentences ask for. objects: image files by name."""
    layers: list[dict[str, Any]] = []
    with named_failure(where, ValueError):
        for edit in parse_edits(text):
            new = without_article(edit.by) if edit.verb == "replace" else edit.target
            fits = [path for name, path in objects.items() if f" {new}".endswith(f" {name}")]
            image = objects.get(new) or next(iter(fits), None)
            if edit.verb == "object" and image is None:
                given = ", ".join(objects) or "none"
                raise ValueError(f"no image of the {new} is given in objects (given: {given})")
            shows = {"text": edit.by} if image is None else {"object": image, "name": new}
            layers.append({
                "object": {**shows, "instruction": edit.sentence}, "erase": {"erase": edit.target},
                "move": {"move": edit.target, "instruction": edit.sentence},
                "replace": {"replace": edit.target, **shows},
            }[edit.verb])  # fmt: skip
    return layers


def plain_name(name: str) -> str:
    return " ".join(name.lower().split())


def _read_layer(values: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> JobLayer:
    """A layer with its settings: the defaults of single commands, those of the job, its own."""
    given = dict(values)
    kind = next(kind for kind in KINDS if kind in given)
    about = given[kind] if kind == "object" else given.pop(kind)
    if not about or not isinstance(about, list if kind == "text" and "masks" in given else str):
        raise ValueError(f"{where}: {kind} must be a text, got {excerpt(about)}")
    shown = Path(str(about)).stem if kind == "object" else without_article(plain_name(str(about)))
    name = plain_name(str(given.pop("name", shown)))
    own, parts = dict[str, Any](kind=kind, name=name), dict[str, Any]()
    if kind in ("erase", "move", "replace"):
        own |= {"name": shown, "mask": None if (mask := given.pop("mask", None)) is None else Path(mask)}
        parts["find"] = EraseSettings
    own["where"] = f"{where} ({kind} {own['name']})"
    here = f"{own['where']}: "
    schema: Any = None if kind == "erase" else ComposeSettings
    if kind == "replace":
        if ("text" in given) == ("object" in given):
            raise ValueError(f"{here}either object: FILE or text: PROMPT says what comes instead")
        own["called"] = name if name != shown else plain_name(given.get("text") or Path(given["object"]).stem)
        given.setdefault("box", WHOLE)
    if kind == "text" or (kind == "replace" and "text" in given):
        schema, prompts = PaintSettings, given.pop("text", about)
        given |= {"prompts": prompts if isinstance(prompts, list) else [prompts]}
        if "mask" in given:
            given["masks"] = [given.pop("mask")]
        if kind == "text":
            if ("box" in given) == ("masks" in given):
                raise ValueError(f"{here}either mask: FILE or box: [x1, y1, x2, y2] says where to paint")
            box, depth = given.get("box"), given.pop("depth", None)
            own |= {"box": box and check_box01(box, where=f"{here}box"), "depth": depth}
            if not isinstance(depth or 0, int | float) or not 0 <= (depth or 0) <= 1:
                raise ValueError(f"{here}depth must be a number in [0, 1], got {excerpt(depth)}")
        given.pop("box", None)
    if isinstance(given.get("depth"), int | float):
        given["depth"] = [given["depth"]]
    if kind == "move":
        given["object"] = shared["background"]
        if not {"to", "instruction", "box", "box_px"} & given.keys():
            raise ValueError(f"{here}either to: WORDS or box: [x1, y1, x2, y2] says where it goes")
        if "to" in given:
            given["instruction"] = f"place the {shown} {given.pop('to')}"
    parts |= {} if schema is None else {"settings": schema}
    known = {key for part in parts.values() for key in type_hints(part)} - JOB_KEYS
    if unknown := sorted(given.keys() - known - ({"object"} if kind == "move" else set())):
        raise ValueError(f"{here}{nearest(unknown[0], sorted(known), 'key')}")
    if given.get("num_samples", 1) != 1 and schema is not ComposeSettings:
        raise ValueError(f"{here}num_samples must be 1: a layer is one image")
    return JobLayer(**own, **{part: _settings(schema, given, shared, here) for part, schema in parts.items()})


def _settings(schema: Any, given: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Any:
    """The settings of one command for a layer: its defaults, those of the job, the layer's own keys."""
    hints = type_hints(schema)
    job = {key: value for key, value in shared.items() if key in hints}
    if schema is ComposeSettings and "instruction" not in given:
        job = {key: value for key, value in job.items() if key not in WITH_SENTENCE}
    if schema is PaintSettings:
        job = {**job, "model": shared.get("inpainter"), "image": shared["background"]}
    own = {key: value for key, value in given.items() if key in hints}
    below = yaml_layers(DEFAULTS) if schema is ComposeSettings else []
    return merge_layers(schema, [*below, Layer(job, where), Layer(own, where)], where)
