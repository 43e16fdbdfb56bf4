"""A request to edit an image -> the settings of a composite or a painting, and what its answer says."""

import json
import threading
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_origin

from starlette.datastructures import FormData, UploadFile

from compose.recipe import settings_of_recipe
from compose.serve.jobs import Job, Work
from compose.serve.settings import (
    COMMON,
    COMPOSE_IMAGES,
    FIELDS,
    MOST_IMAGES,
    NEEDED,
    PATHS,
    REGIONS,
    SERVERS,
    ServeSettings,
    filled,
)
from compose.serve.uploads import named_bytes, store, white_is_edit, written_mask
from compose.serve.work import compose_work, paint_work, place_work, replay_work
from compose.settings import CompositeSettings
from datasets.geometry import box_to_pixels, check_box01, mask_of_box
from inpainting.dream import DreamSettings
from ldm.decode import opened
from ldm.settings.config import to_plain
from ldm.settings.schema import flat_settings, from_text, members, nearest

REGION_KEYS = ("prompt", "negative", "box")
DECODING = threading.Lock()  # one image at a time is decoded beside those of the workers


class EditRequest:
    """The fields of a form, whose images go to the folder of the job; ValueError names a wrong field."""

    def __init__(self, form: FormData, job: Job, settings: ServeSettings, kind: str = "") -> None:
        """kind: of its work; without it compose or paint, by what is there."""
        self.job, self.settings = job, settings
        self.given: dict[str, list[str | UploadFile]] = defaultdict(list)
        for name, value in form.multi_items():
            self.given[name.removesuffix("[]")].append(value)  # as OpenAI's clients send what is several
        self.kind = kind or ("compose" if "reference_image" in self.given else "paint")

    def work(self, models: Mapping[str, str]) -> Work:
        """What the request asks for, with what the answer says of it. models: kind -> name of its model"""
        kind, given = self.kind, self.given
        for name in given:
            if name not in FIELDS[kind]:
                known = kind in ("compose", "paint") and name in {*FIELDS["compose"], *FIELDS["paint"]}
                needs = "needs" if kind == "paint" else "does not go with"
                unknown = nearest(name, sorted(FIELDS[kind]), "field")
                raise ValueError(f"{name} {needs} reference_image" if known else unknown)
        for name, what in NEEDED.get(kind, NEEDED["paint"]).items():
            if not given[name] and not (name == "instruction" and given["prompt"]):
                raise ValueError(f"{name} is missing: {what}")
        choices = {"response_format": ("b64_json", "url"), "output_format": ("png",)}
        for name, allowed in {**choices, "model": (models.get(kind, ""),)}.items():
            if (value := self.text(name, allowed[0])) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")
        if not (count := self.text("n", "1")).isdecimal() or not 1 <= int(count) <= MOST_IMAGES:
            raise ValueError(f"n must be 1 to {MOST_IMAGES}, got {count!r}")
        self.files = {name: self.images(name) for name in ("result", *COMPOSE_IMAGES) if given[name]}
        with DECODING:
            if (size := self.text("size", "auto")) != "auto":
                with opened(self.files["image"][0]) as image:
                    own = f"{image.width}x{image.height}"
                if size != own:
                    raise ValueError(f"size must be auto or {own}, the size of the image, got {size!r}")
            schema = DreamSettings if kind == "paint" else CompositeSettings
            self.values = {"num_samples": count, **self.read_values(schema)}
            work, polarity = {"paint": self.painting, "replay": self.replayed}.get(kind, self.composite)()
        facts = {"size": size, "mask": polarity} if polarity else {}
        return lambda job, networks: {**facts, **work(job, networks)}

    def text(self, name: str, default: str = "") -> str:
        values = self.given.get(name) or [default]
        if len(values) > 1 or not isinstance(values[0], str):
            got = "a file" if len(values) == 1 else len(values)
            raise ValueError(f"{name} must be one text, got {got}")
        return values[0].strip()

    def images(self, name: str) -> list[Path]:
        """The files of a field that holds images: uploads, paths or addresses."""
        if len(values := self.given[name]) > 1 and name != "mask":
            more = "; the object goes into reference_image" if name == "image" else ""
            raise ValueError(f"{name} must be one image, got {len(values)}{more}")
        texts = lambda text: named_bytes(name, text, self.settings)  # noqa: E731
        loaded = [texts(value) if isinstance(value, str) else value.file.read() for value in values]
        return [store(self.job, name, data, self.settings) for data in loaded]

    def read_values(self, schema: type) -> dict[str, Any]:
        """The settings among the fields; what is several may be repeated or have commas."""
        values = {}
        for name, (_, hint) in flat_settings(schema).items():
            wanted = name in FIELDS[self.kind] and name not in {*COMMON, *COMPOSE_IMAGES, "anchors"}
            if wanted and (given := self.given.get(name)):
                several = get_origin(members(hint)[0]) in (tuple, list)
                values[name] = from_text(hint, ",".join(map(str, given)) if several else self.text(name))
        return values

    def composite(self) -> tuple[Work, str | None]:
        """The work of a composite or of finding its place, and how its mask was read."""
        if len(self.files.get("mask", ())) > 1:
            raise ValueError("mask must be one image with reference_image")
        polarity = self.image_settings()
        if "mask" in self.files:
            self.values.setdefault("within_mask", True)  # whoever sends a mask expects the rest to stay
        if prompt := self.text("prompt"):
            if also := [name for name in ("instruction", "box", "box_px", "mask") if self.given.get(name)]:
                twice = f"prompt says where the object goes, and so does {also[0]}"
                raise ValueError(f"{twice}: give one of them")
            self.values["instruction"] = prompt
        if anchors := self.text("anchors"):
            path = self.job.inputs / "anchors.json"
            path.write_text(anchors, encoding="utf-8")
            self.job.names[str(path)], self.values["anchors"] = "anchors", path.as_posix()
        own = filled(CompositeSettings, self.settings.compose_config, self.values)
        if self.kind == "place":
            return partial(place_work, own), polarity
        return partial(compose_work, own, layers=own.layers), polarity

    def image_settings(self) -> str | None:
        """Name the images of a composite in its settings; returns how its mask was read."""
        paths, polarity = {COMPOSE_IMAGES[name]: path[0] for name, path in self.files.items()}, None
        if "mask" in self.files:
            paths["target_mask"], polarity = white_is_edit(self.job, self.files["mask"][0], "mask")
        self.values |= {name: path.as_posix() for name, path in paths.items()}
        return polarity

    def painting(self) -> tuple[Work, str | None]:
        """The work of a painting, and how its masks were read."""
        prompt, image = self.text("prompt"), self.files["image"][0]
        read = [white_is_edit(self.job, path, "mask") for path in self.files.get("mask", ())]
        regions: list[dict[str, Any]] = [{"prompt": prompt}]
        if self.given.get("regions"):
            regions = self.regions()
            if prompt:
                raise ValueError("prompt: each of the regions has its own; leave it empty")
        elif not read:
            read = [entry for entry in [white_is_edit(self.job, image, "image")] if entry[0] != image]
            if not read:
                where = "where to paint (or regions, or a transparent part of the image)"
                raise ValueError(f"mask is missing: {where}")
        free, masks = iter(read), []
        for region in regions:
            if "box" in region:
                with opened(image) as decoded:
                    size = decoded.height, decoded.width
                masks.append(written_mask(self.job, mask_of_box(box_to_pixels(region["box"], size), size)))
            elif (entry := next(free, None)) is not None:
                masks.append(entry[0])
        if len(masks) < len(regions) or next(free, None) is not None:
            boxes = sum("box" in region for region in regions)
            own = f"{len(regions)} regions, {boxes} of them with a box,"
            raise ValueError(f"{own} do not fit {len(read)} masks")
        self.values |= {"image": image.as_posix(), "masks": [mask.as_posix() for mask in masks]}
        self.values["prompts"] = [region.get("prompt", "") for region in regions]
        if any(region.get("negative") for region in regions):
            self.values["negatives"] = [region.get("negative", "") for region in regions]
        polarity = ", ".join(dict.fromkeys(polarity for _, polarity in read)) or None
        return partial(paint_work, filled(DreamSettings, self.settings.paint_config, self.values)), polarity

    def replayed(self) -> tuple[Work, str | None]:
        """The work that a composite's recipe describes; its inputs are sent again, its paths are not read."""
        [result] = self.files.pop("result")
        made_by, recipe = settings_of_recipe(result)
        needed = [name for name, key in COMPOSE_IMAGES.items() if recipe["inputs"].get(key)]
        if {*needed} != self.files.keys():
            given = ", ".join(self.files) or "none"
            raise ValueError(f"result was made from {', '.join(needed)}; given: {given}")
        if (count := made_by.num_samples) > MOST_IMAGES:
            raise ValueError(f"result is one of {count}; at most {MOST_IMAGES} are painted at once")
        plain = to_plain(made_by)
        self.values = {name: value for name, value in plain.items() if name not in SERVERS | PATHS}
        polarity = self.image_settings()
        own = filled(CompositeSettings, self.settings.compose_config, self.values)
        return partial(replay_work, own, recipe, result), polarity

    def regions(self) -> list[dict[str, Any]]:
        """What the field says; ValueError says what a list of them looks like."""
        try:
            regions = json.loads(self.text("regions"))
        except json.JSONDecodeError as error:
            raise ValueError(f"regions is no JSON ({error}); {REGIONS}") from None
        if not (regions and isinstance(regions, list) and all(isinstance(each, dict) for each in regions)):
            raise ValueError(f"regions must be a {REGIONS}")
        for number, region in enumerate(regions, 1):
            for name, value in region.items():
                if name not in REGION_KEYS:
                    raise ValueError(f"region {number}: {nearest(name, REGION_KEYS, 'key')}")
                if name != "box" and not isinstance(value, str):
                    raise ValueError(f"region {number}: {name} must be text")
            if "box" in region:
                try:
                    check_box01(region["box"], where=f"region {number}: box")
                except TypeError:
                    raise ValueError(f"region {number}: box must be four numbers") from None
        return regions
