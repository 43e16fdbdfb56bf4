"""The fields of requests to the HTTP API, what they mean, and their schema, from the settings themselves."""

from typing import Any

from compose.serve.settings import COMPOSE_FIELDS, COMPOSE_IMAGES, MOST_IMAGES, PAINT_FIELDS
from compose.settings import CompositeSettings
from inpainting.dream import DreamSettings
from ldm.settings.schema import setting_schemas
from llava_bifrost.settings import WITH_SENTENCE

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
    """The OpenAPI description of a request body."""
    found = field_schemas(*kinds)
    for name in found.keys() & PICTURES:
        found[name] = {"format": "binary", **found[name]}
    needed = [*NEEDED.get(kinds[0], NEEDED["paint"])]
    body = {"type": "object", "properties": found, "required": needed, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}
