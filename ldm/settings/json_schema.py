"""JSON Schema of settings dataclasses, for programs that fill them."""

from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args, get_origin

from ldm.settings.config import to_plain
from ldm.settings.schema import flat_settings, members, section_of

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def type_schema(hint: Any, rule: dict[str, Any]) -> dict[str, Any]:
    """The schema of one type with the range and the choices of its setting."""
    kinds = members(hint)
    if len(kinds) > 1:
        return {"anyOf": [type_schema(kind, rule) for kind in kinds]}
    inner = get_args(kinds[0])
    if get_origin(kinds[0]) in (tuple, list):
        some = inner[-1] is Ellipsis or len(inner) == 1
        size = {} if some else {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "items": type_schema(inner[0], rule), **size}
    if get_origin(kinds[0]) is dict:
        return {"type": "object", "additionalProperties": type_schema(inner[1], rule)}
    return {"type": TYPES.get(kinds[0], "object"), **rule}


def setting_schemas(schema: type) -> dict[str, dict[str, Any]]:
    """Key -> JSON Schema of every setting; keys of sections are dotted. Required ones have no default."""
    found = {}
    for key, (field, hint) in flat_settings(schema).items():
        if section_of(hint) is not None:
            continue
        names = {"minimum": "low", "maximum": "high", "enum": "choices"}
        rule = {name: field.metadata.get(was) for name, was in names.items()}
        one = type_schema(hint, {name: value for name, value in rule.items() if value is not None})
        one["description"] = field.metadata.get("help", "")
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING and default is not None:
            one["default"] = default
        found[key] = to_plain(one)
    return found
