"""A request to edit an image -> the settings of a composite or a painting, and what its answer says."""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_origin

import numpy as np
from starlette.datastructures import FormData, UploadFile

from compose.recipe import settings_of_recipe
from compose.serve.fields import COMMON, FIELDS, NEEDED, REGIONS
from compose.serve.jobs import Job, Work
from compose.serve.settings import COMPOSE_IMAGES, MOST_IMAGES, PATHS, SERVERS, ServeSettings
from compose.serve.uploads import named_bytes, store, white_is_edit
from compose.serve.work import Networks, compose_work, paint_work, place_work, replay_work
from compose.settings import CompositeSettings
from datasets.geometry import box_to_pixels, check_box01, mask_of_box
from inpainting.dream import DreamSettings
from ldm.decode import opened
from ldm.images import encode_png
from ldm.settings.config import Layer, merge_layers, to_plain, yaml_layers
from ldm.settings.schema import flat_settings, from_text, members, nearest

T = TypeVar("T")
Fields = dict[str, list[str | UploadFile]]

DECODING = threading.Lock()  # one image at a time is decoded beside those of the workers


@dataclass(frozen=True)
class Edit:
    """What a request asks for."""

    kind: str  # compose, paint, place or replay
    work: Work
    as_url: bool
    facts: dict[str, Any]  # what the answer says of the request

    def run(self, job: Job, networks: Networks) -> dict[str, Any]:
        """The work, with what the answer says of the request."""
        return {**self.facts, **self.work(job, networks)}


def filled(schema: type[T], config: Path | None, values: Mapping[str, Any]) -> T:
    """Settings: the server's defaults with the values of a request on top."""
    return merge_layers(schema, [*(yaml_layers(config) if config else ()), Layer(values)])


def read_edit(
    form: FormData, job: Job, settings: ServeSettings, models: Mapping[str, str], kind: str = ""
) -> Edit:
    """Check the fields of a form, store its images in the folder of the job.

    models: kind -> name of its model. kind: place or replay; else compose or paint, by what is there.
    ValueError names the field, what was given and what is allowed.
    """
    given: Fields = defaultdict(list)
    for name, value in form.multi_items():
        given[name.removesuffix("[]")].append(value)  # as OpenAI's clients send what is several
    kind = kind or ("compose" if "reference_image" in given else "paint")
    for name in given:
        if name not in FIELDS[kind]:
            other = FIELDS["compose" if kind == "paint" else "paint"]
            needs = "needs" if kind == "paint" else "does not go with"
            wrong = (
                f"{name} {needs} reference_image"
                if name in other and kind in ("compose", "paint")
                else nearest(name, sorted(FIELDS[kind]), "field")
            )
            raise ValueError(wrong)
    for name, what in NEEDED.get(kind, NEEDED["paint"]).items():
        if not given[name] and not (name == "instruction" and given["prompt"]):
            raise ValueError(f"{name} is missing: {what}")
    for name, allowed in {
        "response_format": ("b64_json", "url"),
        "output_format": ("png",),
        "model": (models.get(kind, ""),),
    }.items():
        if (value := text_of(given, name, allowed[0])) not in allowed:
            raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")
    if not (count := text_of(given, "n", "1")).isdecimal() or not 1 <= int(count) <= MOST_IMAGES:
        raise ValueError(f"n must be 1 to {MOST_IMAGES}, got {count!r}")
    named = [name for name in ("result", *COMPOSE_IMAGES) if given[name]]
    files = {name: image_files(job, name, given[name], settings) for name in named}
    with DECODING:
        if (size := text_of(given, "size", "auto")) != "auto":
            with opened(files["image"][0]) as image:
                own = f"{image.width}x{image.height}"
            if size != own:
                raise ValueError(f"size must be auto or {own}, the size of the image, got {size!r}")
        values: dict[str, Any] = {"num_samples": count}
        values |= read_values(given, DreamSettings if kind == "paint" else CompositeSettings, FIELDS[kind])
        readers: dict[str, Callable[..., tuple[Work, str | None]]] = {
            "paint": paint_edit,
            "replay": replay_edit,
            "place": partial(compose_edit, work=place_work),
            "compose": partial(compose_edit, work=lambda own: compose_work(own, layers=own.layers)),
        }
        work, polarity = readers[kind](job, given, files, values, settings)
    facts = {"size": size, "mask": polarity} if polarity else {}
    return Edit(kind, work, text_of(given, "response_format", "b64_json") == "url", facts)


def text_of(given: Fields, name: str, default: str = "") -> str:
    """The one text of a field."""
    values = given.get(name) or [default]
    if len(values) > 1 or not isinstance(values[0], str):
        raise ValueError(f"{name} must be one text, got {'a file' if len(values) == 1 else len(values)}")
    return values[0].strip()


def image_files(
    job: Job, name: str, values: Sequence[str | UploadFile], settings: ServeSettings
) -> list[Path]:
    """The files of a field that holds images: uploads, paths or addresses."""
    if len(values) > 1 and name != "mask":
        more = "; the object goes into reference_image" if name == "image" else ""
        raise ValueError(f"{name} must be one image, got {len(values)}{more}")
    loaded = [
        named_bytes(name, value, settings) if isinstance(value, str) else value.file.read()
        for value in values
    ]
    return [store(job, name, data, settings) for data in loaded]


def read_values(given: Fields, schema: type, names: set[str]) -> dict[str, Any]:
    """The settings among the fields, as texts and lists; what is several may be repeated or have commas."""
    values = {}
    for name, (_, hint) in flat_settings(schema).items():
        if name in names - COMMON.keys() and given.get(name) and name not in (*COMPOSE_IMAGES, "anchors"):
            several = get_origin(members(hint)[0]) in (tuple, list)
            parts: Fields = {name: [",".join(map(str, given[name]))]} if several else given
            values[name] = from_text(hint, text_of(parts, name))
    return values


def compose_edit(
    job: Job,
    given: Fields,
    files: dict[str, list[Path]],
    values: dict[str, Any],
    settings: ServeSettings,
    work: Callable[[Any], Work],
) -> tuple[Work, str | None]:
    """The work of a composite or of finding its place, and how its mask was read."""
    if len(files.get("mask", ())) > 1:
        raise ValueError("mask must be one image with reference_image")
    paths, polarity = {COMPOSE_IMAGES[name]: path[0] for name, path in files.items()}, None
    if "mask" in files:
        paths["target_mask"], polarity = white_is_edit(job, files["mask"][0], "mask")
        values.setdefault("within_mask", True)  # whoever sends a mask expects the rest to stay
    if prompt := text_of(given, "prompt"):
        if also := [name for name in ("instruction", "box", "box_px", "mask") if given.get(name)]:
            raise ValueError(f"prompt says where the object goes, and so does {also[0]}: give one of them")
        values["instruction"] = prompt
    if anchors := text_of(given, "anchors"):
        paths["anchors"] = job.inputs / "anchors.json"
        paths["anchors"].write_text(anchors, encoding="utf-8")
        job.names[str(paths["anchors"])] = "anchors"
    values |= {name: path.as_posix() for name, path in paths.items()}
    return work(filled(CompositeSettings, settings.compose_config, values)), polarity


def paint_edit(
    job: Job, given: Fields, files: dict[str, list[Path]], values: dict[str, Any], settings: ServeSettings
) -> tuple[Work, str | None]:
    """The work of a painting, and how its masks were read."""
    prompt, image = text_of(given, "prompt"), files["image"][0]
    read = [white_is_edit(job, path, "mask") for path in files.get("mask", ())]
    regions: list[dict[str, Any]] = [{"prompt": prompt}]
    if given.get("regions"):
        regions = read_regions(text_of(given, "regions"))
        if prompt:
            raise ValueError("prompt: each of the regions has its own; leave it empty")
    elif not read:
        read = [entry for entry in [white_is_edit(job, image, "image")] if entry[0] != image]
        if not read:
            raise ValueError(
                "mask is missing: where to paint (or regions, or a transparent part of the image)"
            )
    free, masks = iter(read), []
    for region in regions:
        if "box" in region:
            with opened(image) as decoded:
                size = decoded.height, decoded.width
            data = encode_png(mask_of_box(box_to_pixels(region["box"], size), size).astype(np.uint8) * 255)
            masks.append(job.inputs / f"{hashlib.sha256(data).hexdigest()}.png")
            masks[-1].write_bytes(data)
        elif (entry := next(free, None)) is not None:
            masks.append(entry[0])
    if len(masks) < len(regions) or next(free, None) is not None:
        boxes = sum("box" in region for region in regions)
        raise ValueError(f"{len(regions)} regions, {boxes} of them with a box, do not fit {len(read)} masks")
    values |= {"image": image.as_posix(), "masks": [mask.as_posix() for mask in masks]}
    values["prompts"] = [region.get("prompt", "") for region in regions]
    if any(region.get("negative") for region in regions):
        values["negatives"] = [region.get("negative", "") for region in regions]
    polarity = ", ".join(dict.fromkeys(polarity for _, polarity in read)) or None
    return paint_work(filled(DreamSettings, settings.paint_config, values)), polarity


def replay_edit(
    job: Job, given: Fields, files: dict[str, list[Path]], values: dict[str, Any], settings: ServeSettings
) -> tuple[Work, str | None]:
    """The work that a composite's recipe describes; its inputs are sent again, its paths are not read."""
    [result], polarity = files.pop("result"), None
    made_by, recipe = settings_of_recipe(result)
    needed = [name for name, key in COMPOSE_IMAGES.items() if recipe["inputs"].get(key)]
    if {*needed} != files.keys():
        raise ValueError(f"result was made from {', '.join(needed)}; given: {', '.join(files) or 'none'}")
    if made_by.num_samples > MOST_IMAGES:
        raise ValueError(f"result is one of {made_by.num_samples}; at most {MOST_IMAGES} are painted at once")
    paths = {COMPOSE_IMAGES[name]: path[0] for name, path in files.items()}
    if "mask" in files:
        paths["target_mask"], polarity = white_is_edit(job, files["mask"][0], "mask")
    values = {name: value for name, value in to_plain(made_by).items() if name not in SERVERS | PATHS}
    values |= {name: path.as_posix() for name, path in paths.items()}
    return replay_work(filled(CompositeSettings, settings.compose_config, values), recipe, result), polarity


def read_regions(text: str) -> list[dict[str, Any]]:
    """The regions of a request; ValueError says what a list of them looks like."""
    try:
        regions = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"regions is no JSON ({error}); {REGIONS}") from None
    if not isinstance(regions, list) or not regions or not all(isinstance(each, dict) for each in regions):
        raise ValueError(f"regions must be a {REGIONS}")
    for number, region in enumerate(regions, 1):
        for name, value in region.items():
            if name not in ("prompt", "negative", "box"):
                raise ValueError(f"region {number}: {nearest(name, ('prompt', 'negative', 'box'), 'key')}")
            if name != "box" and not isinstance(value, str):
                raise ValueError(f"region {number}: {name} must be text")
        if "box" in region:
            try:
                check_box01(region["box"], where=f"region {number}: box")
            except TypeError:
                raise ValueError(f"region {number}: box must be four numbers") from None
    return regions
