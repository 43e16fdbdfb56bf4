"""The entries of `configs/models.yaml`, checked, and whether each model is complete on this disk."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.files import FULL, KEPT_HASHES, located, visible_files
from ldm.settings.config import Layer, check_settings, load_config, merge_layers, nearest, setting

FULL_DEPTH, BUILTIN_DEPTH = Path("models/depth"), Path("assets/depth")
DEFAULT_DEPTH = f"without it {FULL_DEPTH.as_posix()} if present, else {BUILTIN_DEPTH.as_posix()}"
U2NETP = Path("models/u2netp/u2netp.onnx")
BUILTIN, BUILTIN_FOLDER = "builtin", Path("models/builtin_detector")
REGISTRY_FILE = Path("configs/models.yaml")
HASH_FILE = "hashes.json"
FULL_SIZE = {  # small network of assets/tiny -> entry of the registry that it stands for
    "compositor": "bifrost-checkpoint", "depth": "depth", "inpainter": "sd2-inpainting",
    "locator": "bifrost-mllm", "prompter": "multimask-adapter"}  # fmt: skip
NO_CONTENT = re.compile(  # files of ours, of the hub's library and of macOS beside those of a model
    rf"{HASH_FILE}|\.cache/huggingface/.*|(?:.*/)?(?:{re.escape(KEPT_HASHES)}|\.DS_Store|\._[^/]*)"
)
UNFINISHED = (".part", ".wrong")  # downloads under way, and files with another hash than expected


@dataclass(frozen=True)
class Source:
    """One place that a model comes from: a hub repository, an address, or a page to be visited by hand."""

    hub: str = setting("", help="owner/name on the Hugging Face hub")
    files: tuple[str, ...] = setting((), help="patterns of the hub repository's files that are needed")
    url: str = setting("", help="address of one file")
    packages: dict[str, Any] = setting(
        {},
        help="NAME==VERSION of each Python package that holds files of it -> path of the file -> its SHA-256",
    )
    manual: str = setting("", help="page where a person gets the file")
    name: str = setting("", help="name of the file on the disk; default: the address's last part")
    sha256: str = setting("", help="hash of the file of `url`, where known")

    def __post_init__(self) -> None:
        check_settings(self)
        if sum(map(bool, (self.hub, self.url, self.packages, self.manual))) != 1:
            raise ValueError("a source has exactly one of hub, url, packages, manual")
        if not all(isinstance(held, Mapping) and all(held.values()) for held in self.packages.values()):
            wrong = "packages: each names its files and their SHA-256: {NAME==VERSION: {FILE: HASH}}"
            raise ValueError(wrong)

    @property
    def file_name(self) -> str:
        return self.name or self.url.rpartition("/")[2]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files on the disk, by their names, where it is known."""
        held = {path: value for files in self.packages.values() for path, value in files.items()}
        known = {path.rpartition("/")[2]: value for path, value in held.items()}
        return known | ({self.file_name: self.sha256} if self.sha256 else {})


@dataclass(frozen=True)
class Model:
    about: str = setting(help="what it is")
    folder: str = setting(help="its folder below the models folder")
    needs: tuple[str, ...] = setting(help="patterns of the files that make it complete")
    licence: str = setting(help="licence of the weights")
    size_gb: float = setting(help="download size", low=0.0)
    used_by: tuple[str, ...] = setting((), help="what uses it")
    then: str = setting("", help="command to run after the download")
    sources: list[dict[str, Any]] = setting([], help="ordered sources, see Source")
    places: list[Source] = field(default_factory=list)  # `sources`, checked


@dataclass(frozen=True)
class Registry:
    models: dict[str, Any] = setting(help="name -> Model")

    def __post_init__(self) -> None:
        """The entries become checked models; an error names the model and the key."""
        object.__setattr__(self, "models", dict(self.models))  # those given stay as they are
        for name, values in self.models.items():
            where, at = f"model {name}: ", f"model {name}: source: "
            model = merge_layers(Model, [Layer(values, where)], where)
            places = [merge_layers(Source, [Layer(one, at)], at) for one in model.sources]
            self.models[name] = replace(model, places=places)


def load_registry(path: Path = REGISTRY_FILE) -> dict[str, Model]:
    return load_config(Registry, path).models


def models_root() -> Path:
    return Path(os.environ.get("BIFROST_MODELS") or "models")


def resolve_model_path(path: Path) -> Path:
    """A default path below `models/`, below the folder that BIFROST_MODELS names instead where it is set."""
    below = path.parts[:1] == ("models",) and not path.is_absolute()
    return models_root().joinpath(*path.parts[1:]) if below else path


def depth_folder(chosen: Path | None = None) -> Path:
    """The depth network to use: the chosen one, else the full-size one where it is there, else the rules."""
    full = resolve_model_path(FULL_DEPTH)
    return chosen or (full if (full / "config.json").is_file() else located(BUILTIN_DEPTH))


def depth_for_photographs(chosen: Path | str | None) -> Path:
    """The depth network for photographs, a folder or hub name; warns where it is a stand-in."""
    folder = depth_folder(None if chosen is None else Path(chosen))
    warn_of_small(folder, photographs=True)
    return folder


def warn_of_small(*folders: Path, photographs: bool = False) -> None:
    """Warn of each stand-in among networks used together: the small ones of assets/tiny, depth by rules.

    Without photographs only where one of the others is none of them, so that they do not fit together.
    """
    assets = located(BUILTIN_DEPTH).parent.resolve()
    small = [folder for folder in folders if folder.resolve().parent in (assets, assets / "tiny")]
    met = "photographs" if photographs else ", ".join(str(one) for one in folders if one not in small)
    registry = load_registry(located(REGISTRY_FILE)) if small and met else {}
    for folder in small if met else ():
        name = FULL_SIZE[folder.name]
        text = "%s is no full-size network, and meets %s; get a real one with: %s"
        logging.getLogger(__name__).warning(text, folder, met, pull_command(name, registry[name]))


def cutout_network(choice: str) -> Path | None:
    """The U2-Netp file of a `cutout` setting: auto (where it is there), u2netp or grabcut."""
    path = resolve_model_path(U2NETP)
    if choice == "u2netp" and not path.is_file():
        raise ValueError(f"{path}: no such file{how_to_get(path)}")
    return path if choice != "grabcut" and path.is_file() else None


def detector_folder(chosen: Path) -> Path:
    """The folder of a `detector` setting; `builtin` is the rough one of the registry, with U2-Netp."""
    if chosen != Path(BUILTIN):
        return chosen
    cutout_network("u2netp")  # or its error
    return resolve_model_path(BUILTIN_FOLDER)


def folder_of(model: Model) -> Path:
    return models_root() / model.folder


def missing_files(model: Model, folder: Path | None = None) -> list[str]:
    """The patterns that no file of the model's folder matches; empty = complete."""
    found = {pattern: visible_files(folder or folder_of(model), pattern) for pattern in model.needs}
    return [pattern for pattern, paths in found.items() if all(path.suffix in UNFINISHED for path in paths)]


def kept_files(folder: Path) -> set[str]:
    """Names of all in a model's folder, also hidden files and links, but not what programs leave there."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name for path in paths if not NO_CONTENT.fullmatch(name := path.relative_to(folder).as_posix())}


def pull_command(name: str, model: Model) -> str:
    """The command that gets a model of the registry, and what is to be run after it."""
    return f"python -m ldm.registry pull {name}" + (f", then {model.then}" if model.then else "")


def how_to_get(place: Path | str) -> str:
    """The command that gets what belongs there, a folder, a file in it or a hub name; "" where none does."""
    path = resolve_model_path(Path(place)).absolute()
    for name, model in load_registry(located(REGISTRY_FILE)).items():
        folder = folder_of(model).absolute()
        made = [resolve_model_path(Path(word)).absolute() for word in model.then.split()[-1:]]
        if {folder, *made} & {path, *path.parents} or str(place) in {source.hub for source in model.places}:
            return f"; get it with: {pull_command(name, model)}"
    return ""


def existing_folder(path: Path) -> Path:
    """The folder of a model as given; where it is missing a ValueError names the command that gets it."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such model folder{how_to_get(path)}")
    return path


def find(name: str, registry: Mapping[str, Model]) -> Model:
    if name not in registry:
        raise ValueError(nearest(name, registry, "model"))
    return registry[name]


OTHER_FRAMEWORKS = ("*.msgpack", "*.h5", "*.onnx", "*.ot")
PICKLED = ("*.bin", "*.pt", "*.pth")  # not needed where the same weights lie there as safetensors


def local_or_hub_folder(model_id: str, ignore: Sequence[str] = (*OTHER_FRAMEWORKS, *PICKLED)) -> Path:
    """The folder of a model: itself, or the hub's copy, which is fetched, less `ignore`, unless offline."""
    return Path(model_id) if Path(model_id).is_dir() else hub_files(model_id, ignore_patterns=list(ignore))


def hub_files(name: str, **options: Any) -> Path:
    """The files of a hub repository; token, endpoint and offline mode are the hub library's own."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # whatever the hub library fails with
        if getattr(error, "errno", None) in FULL:
            raise
        said = " ".join(str(error).split())
        raise ValueError(f"{name}: no such folder, and the hub says: {said}{how_to_get(name)}") from error
