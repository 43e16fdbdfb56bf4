"""What a settings dataclass declares: fields with help, range and choices, and how users read and type them.

A *section* is a nested dataclass; a *key* is the dotted name of a field (`optim.lr`).
"""

import copy
import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

type_hints = cache(get_type_hints)  # of a schema; not to be changed
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
LISTED_NAMES = 24  # names shown in an error before the list is cut


def setting(
    default: Any = MISSING,
    *,
    help: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
    aliases: Sequence[str] = (),
    was: Sequence[str] = (),
) -> Any:
    """A dataclass field with a help text, an inclusive range [low, high] and allowed values.

    Without a default the setting is required; low, high and choices hold for every element of a collection.
    aliases: more spellings as flags; one without dashes, such as IMAGE_TREE, is typed by position; one that
    begins with /, such as /--keep, is the opposite of a flag, instead of --no-NAME.
    was: former names, which are still read, with one log line that says the new name.
    """
    metadata = {"help": help, "low": low, "high": high, "aliases": tuple(aliases), "was": tuple(was)}
    metadata["choices"] = None if choices is None else tuple(choices)
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(name: object, allowed: Iterable[object], what: str = "name") -> str:
    """The message "unknown WHAT 'foo'; did you mean 'bar'? allowed: ..."."""
    names, tail = [str(item) for item in allowed], str(name).rpartition(".")[2].lower()
    close = [item for item in names if item.rpartition(".")[2].lower() == tail]
    close = close or difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = f", ... ({len(names)} in all)" if len(names) > LISTED_NAMES else ""
    return f"unknown {what} {str(name)!r}; {hint}allowed: {', '.join(names[:LISTED_NAMES]) or 'none'}{more}"


class CheckedSettings:
    """Base of settings dataclasses that refuse values out of range, also when they are made in Python."""

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(settings: Any) -> None:
    """Refuse a dataclass whose values, or whose sections' values, leave their range; for `__post_init__`."""
    check_values(type(settings), settings)


def check_values(
    schema: type,
    node: Any,
    spell: Callable[[str], str] = str,
    prefix: str = "",
    is_open: Callable[[Any, str], bool] = lambda node, name: False,
) -> None:
    """Ranges and choices of a dataclass, or of the OmegaConf node that becomes one.

    spell: keys in errors;  is_open: whether a value is not there yet
    """
    for field, section in limited_fields(schema):
        if is_open(node, name := field.name):
            continue
        if (value := getattr(node, name)) is None:
            continue
        if section is not None:
            check_values(section, value, spell, f"{prefix}{name}.", is_open)
            continue
        single = isinstance(value, str | int | float) or not isinstance(value, Mapping | Sequence)
        items: Iterable[Any] = [value] if single else value.values() if isinstance(value, Mapping) else value
        choices, low, high = (field.metadata.get(limit) for limit in ("choices", "low", "high"))
        lowest, highest = -math.inf if low is None else low, math.inf if high is None else high
        for item in items:
            if choices is not None and item is not None and item not in choices:
                raise ValueError(nearest(item, choices, spell(prefix + name)))
            limited = isinstance(item, int | float) and (low is not None or high is not None)
            if limited and not lowest <= item <= highest:  # written so that NaN fails it
                raise ValueError(f"{spell(prefix + name)} must be {range_name(field.metadata)}, got {item}")


@cache
def limited_fields(schema: type) -> list[tuple[Field, Any]]:
    """The fields of a dataclass that have a range, choices or a section, each with its section or None."""
    hints, limits = type_hints(schema), ("low", "high", "choices")
    fields = [(field, section_of(hints[field.name])) for field in dataclasses.fields(schema)]
    return [
        (field, section) for field, section in fields
        if section or any(field.metadata.get(limit) is not None for limit in limits)]  # fmt: skip


@cache
def section_of(hint: Any) -> Any:
    """The dataclass that a type hint `S` or `S | None` names, else None."""
    return next((kind for kind in members(hint) if dataclasses.is_dataclass(kind)), None)


def flat_settings(schema: type, prefix: str = "") -> dict[str, tuple[Field, Any]]:
    """Every key of a schema with its field and type; the fields of a section follow it as `section.field`."""
    found: dict[str, tuple[Field, Any]] = {}
    hints = type_hints(schema)
    for field in sorted(dataclasses.fields(schema), key=lambda field: bool(field.kw_only)):
        found[prefix + field.name] = (field, hints[field.name])
        if (section := section_of(hints[field.name])) is not None:
            found |= flat_settings(section, f"{prefix}{field.name}.")
    return found


@cache
def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union without None; any other type alone."""
    union = get_origin(hint) in (Union, types.UnionType)
    return tuple(item for item in get_args(hint) if item is not type(None)) if union else (hint,)


def from_text(hint: Any, text: str) -> Any:
    """The value of a typed text: `1,2` for tuples and lists, `a=1,b=2` for dicts; numbers stay text."""
    kinds = members(hint)
    if type(None) in get_args(hint) and text.lower() in ("none", "null"):
        return None
    if kinds in ((str,), (Path,)):
        return text
    if text[:1] in ("[", "{") or len(kinds) > 1:
        try:
            return OmegaConf.to_container(OmegaConf.create(f"[{text}]"))[0]  # type: ignore[index]
        except (YAMLError, OmegaConfBaseException, IndexError) as error:
            raise ValueError(f"cannot read {text!r} as {type_name(hint)}") from error
    parts = [part.strip() for part in text.split(",")] if text else []
    if get_origin(kinds[0]) is dict:
        return {name: value for name, _, value in (part.partition("=") for part in parts)}
    return parts if get_origin(kinds[0]) in (tuple, list) else text


def type_name(hint: Any) -> str:
    """A type as users read it: `float,float`, `int,...`, `path`."""
    kinds = members(hint)
    if len(kinds) > 1:
        return " or ".join(type_name(item) for item in kinds)
    inner = get_args(kinds[0])
    if get_origin(kinds[0]) is dict:
        return f"name={type_name(inner[1])},..."
    if get_origin(kinds[0]) is tuple and inner[-1] is not Ellipsis:
        return ",".join(type_name(item) for item in inner)
    if get_origin(kinds[0]) in (tuple, list):
        return f"{type_name(inner[0])},..."
    if section_of(hint) is not None:
        return "a mapping"
    plain = {str: "text", bool: "true or false", Path: "path"}
    return plain.get(kinds[0]) or str(getattr(kinds[0], "__name__", kinds[0]))


def range_name(rule: Mapping[str, Any]) -> str:
    """`in [0, 1]`, `at least 0`, `at most 1`, or nothing, by the metadata of a setting."""
    low, high = rule.get("low"), rule.get("high")
    if low is not None and high is not None:
        return f"in [{low}, {high}]"
    return "" if low is high else f"at least {low}" if high is None else f"at most {high}"


def to_plain(value: Any) -> Any:
    """A dataclass, or any nest of mappings and sequences, as JSON-able dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"cannot write a {type(value).__name__} as plain settings: {value!r}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of a nest of mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def type_schema(hint: Any, rule: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of one type with the range and the choices of its setting."""
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
    return {"type": JSON_TYPES.get(kinds[0], "object"), **rule}


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
