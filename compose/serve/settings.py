"""The settings of the server; what a request may give, what its fields mean, and their schema."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compose.settings import DEFAULTS, ComposeSettings, CompositeSettings
from inpainting.dream import DreamSettings
from ldm.settings.config import CheckedSettings, Layer, merge_layers, setting, yaml_layers
from ldm.settings.schema import flat_settings, setting_schemas
from llava_bifrost.settings import WITH_SENTENCE

# Field of a request -> the image setting that it fills.
COMPOSE_IMAGES = {"image": "background", "reference_image": "object", "reference_mask": "object_mask"}
COMPOSE_IMAGES |= {"mask": "target_mask", "depth_map": "background_depth", "reference_depth": "object_depth"}
FLAT = {**flat_settings(DreamSettings), **flat_settings(CompositeSettings)}
PATHS = {name for name, (_, hint) in FLAT.items() if "Path" in str(hint)} | {"locator", "folder"}
SERVERS = {  # what the server's owner decides, besides all paths: networks, devices, results
    *("device", "dtype", "offload", "load_in", "lora_scale", "precision", "sheet", "save_steps", "overwrite"),
    *("engine", "channels_last"),
}
OTHERWISE = {"invert_target_mask", "num_samples", "prompts", "negatives"}  # given under other names
MOST_IMAGES = 10  # of one request, as in the API of OpenAI
PLACE = {"background": "-", "object": "-", "box": [0.0, 0.0, 1.0, 1.0]}  # completes settings to be looked at
T = TypeVar("T")


COMPOSE_FIELDS, PAINT_FIELDS = (  # the settings that a request gives by their own names
    [name for name in flat_settings(schema) if name not in SERVERS | OTHERWISE | PATHS]
    for schema in (CompositeSettings, DreamSettings)
)


def filled(schema: type[T], config: Path | None, values: Mapping[str, Any]) -> T:
    """Settings: the server's defaults with the values of a request on top."""
    return merge_layers(schema, [*(yaml_layers(config) if config else ()), Layer(values)])


def anywhere(config: Path | None, values: Mapping[str, Any] = PLACE) -> ComposeSettings:
    """Settings of a composite of no images, to load networks by."""
    return filled(ComposeSettings, config, {**values, **PLACE})


@dataclass(frozen=True)
class ServeSettings(CheckedSettings):
    """Where the server listens, what it takes, and with which networks it works."""

    host: str = setting("127.0.0.1", help="address to listen on; 0.0.0.0: all, then give --auth")
    port: int = setting(7860, low=0, high=65535, help="port to listen on; 0: a free one")
    root_path: str = setting("", help="path below which a proxy serves this: /bifrost; it takes that off")
    auth: str | None = setting(None, help="USER:PASSWORD, asked for everywhere; as a bearer token: the same")
    open: bool = setting(False, help="open the page in the browser")
    share: str = setting("off", choices=("off",), help="no public tunnels: use --host, or ssh -L")
    allow: tuple[Path, ...] = setting(
        (), help="folder whose images requests may name by their path; agents may have new ones written there"
    )
    allow_urls: bool = setting(False, help="requests may name images by public http(s) addresses")
    rate_limit: int = setting(0, low=0, help="jobs that one client may send in a minute; 0 = any number")
    waiting: int = setting(32, low=1, high=10_000, help="jobs that may wait; further ones are told 429")
    max_mb: int = setting(64, low=1, high=10_000, help="largest request, megabytes (10^6 bytes)")
    max_megapixels: int = setting(40, low=1, high=250, help="largest image, millions of pixels")
    keep_minutes: float = setting(60, low=0.1, help="time after which results are deleted")
    out: Path = setting(Path("outputs/serve"), help="folder of uploads and results, for its owner only")
    devices: tuple[str, ...] = setting(("auto",), help="a worker for each: auto, cuda:0, cuda:1, mps or cpu")
    compose_config: Path | None = setting(
        DEFAULTS, help="YAML file of defaults of composites, as for run_inference.py: networks, locator, ..."
    )
    paint_config: Path | None = setting(None, help="YAML file of defaults, as for inpainting.dream")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ValueError("--auth must be USER:PASSWORD")
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/"):
            raise ValueError(f"--root-path must begin with / and not end with it, got {self.root_path!r}")
        if absent := [folder for folder in self.allow if not folder.is_dir()]:
            raise ValueError(f"--allow {absent[0]} is not a folder")
        if not self.devices or len(set(self.devices)) < len(self.devices):
            raise ValueError(f"--devices must name different devices, got {','.join(self.devices) or 'none'}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


MADE = {"result": "a composite made here before, a PNG with its recipe"}
COMMON = {  # fields of OpenAI's API -> what they mean here
    "image": "the image to edit",
    "prompt": "what to paint in the mask; with reference_image the sentence that says where (instruction)",
    "mask": "where to edit: alpha 0, or white in a file without transparency; one for each region",
    "model": "a name of /v1/models",
    "n": f"how many images, 1 to {MOST_IMAGES}; image i has seed + i",
    "size": "auto, or the size of the image: results have its size",
    "response_format": "b64_json or url",
    "output_format": "png",
}
REGIONS = (
    'JSON list: [{"prompt": "a red cube", "negative": "", "box": [0.1, 0.4, 0.5, 0.9]}, ...]; a region '
    "without box takes the next mask, one without prompt gets a prompt that the model writes"
)
IMAGES = {"reference_image": "the object to put in: a composite", "reference_mask": "its mask (white)"}
IMAGES |= {"depth_map": "of the image, bright = near", "reference_depth": "of the object, bright = near"}
PICTURES = {*IMAGES, *MADE, "image", "mask"}
FIELDS = {
    "compose": {*COMMON, *COMPOSE_IMAGES, *COMPOSE_FIELDS, "anchors"},
    "paint": {*COMMON, *PAINT_FIELDS, "regions"},
    "place": {"image", "prompt", "instruction", "anchors", "object_box", "cutout", *IMAGES}
    | (WITH_SENTENCE.keys() & {*COMPOSE_FIELDS}),
    "replay": {"result", *COMPOSE_IMAGES},
}
NEEDED = {
    "paint": {"image": "the image to edit"},
    "place": {"image": "the image to look at", "reference_image": "the object to place"},
    "replay": {"result": "the PNG to paint again"},
}
NEEDED["place"]["instruction"] = "the sentence that says where"


def field_schemas(*kinds: str) -> dict[str, Any]:
    """Field -> JSON Schema of requests of these kinds, from the settings themselves."""
    only = {"compose": " (with reference_image)", "paint": " (without reference_image)"}
    texts = {**COMMON, **IMAGES, **MADE, "regions": REGIONS}
    found: dict[str, Any] = {name: {"type": "string", "description": text} for name, text in texts.items()}
    for kind in kinds:
        for name, entry in setting_schemas(DreamSettings if kind == "paint" else CompositeSettings).items():
            if name in FIELDS[kind] and name not in texts:
                one = sum(name in FIELDS[other] for other in kinds) < len(kinds)
                found[name] = {**entry, "description": entry["description"] + (only[kind] if one else "")}
    return {name: entry for name, entry in found.items() if any(name in FIELDS[kind] for kind in kinds)}


def edit_schema(*kinds: str) -> dict[str, Any]:
    found = field_schemas(*kinds)
    for name in found.keys() & PICTURES:
        found[name] = {"format": "binary", **found[name]}
    needed = [*NEEDED.get(kinds[0], NEEDED["paint"])]
    body = {"type": "object", "properties": found, "required": needed, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}
