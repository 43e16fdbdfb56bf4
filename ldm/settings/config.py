"""Typed settings: a dataclass whose fields `setting` makes, filled from YAML files and `key=value` texts.

A *layer* is one source of values: a file, one override, the flags of a command. Later layers win; mappings
are merged, lists and tuples are replaced. A YAML file may name by `base:` (relative to itself) a file that it
changes.
"""

import copy
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.files import ROOT, located, read_json, read_text, write_json
from ldm.settings.schema import (
    CheckedSettings,
    check_settings,
    check_values,
    flat_settings,
    from_text,
    members,
    nearest,
    section_of,
    setting,
    to_plain,
    type_hints,
    type_name,
)

__all__ = ["CheckedSettings", "Layer", "check_settings", "dump_yaml", "flag_name", "load_config"]
__all__ += ["merge_layers", "nearest", "read_config", "setting", "to_plain", "write_config", "yaml_layers"]

T = TypeVar("T")
defaults = cache(OmegaConf.structured)  # of a schema; not to be changed
MISTAKES = (OmegaConfBaseException, TypeError, OverflowError)
log = logging.getLogger(__name__)


def load_config(schema: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Fill `schema` from its defaults, the YAML file at `path` with its bases, then `key=value` texts.

    Whatever is wrong is a one-line ValueError that names the file (or the override) and the key.
    """
    layers = [] if path is None else yaml_layers(Path(path))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"an override looks like key=value, got {text!r}")
        hint = flat_settings(schema).get(former_names(schema).get(key, key), (None, str))[1]
        layers.append(Layer(nested(key, from_text(hint, value)), f"override {text}: "))
    return merge_layers(schema, layers, where="" if path is None else f"{path}: ")


def read_config(schema: type[T], path: Path, missing: T | None = None) -> T:
    """The JSON configuration of a model folder, `missing` where there is none; ValueError names the key."""
    if missing is not None and not path.is_file():
        return missing
    return merge_layers(schema, [Layer(read_json(path), f"{path}: ")], where=f"{path}: ")


def write_config(path: Path, config: Any) -> None:
    """The JSON file that `read_config` reads back, as a whole."""
    write_json(path, to_plain(config))


def dump_yaml(settings: Any) -> str:
    """YAML text that `load_config` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(to_plain(settings))))


@dataclass(frozen=True)
class Layer:
    values: Mapping[str, Any]
    source: str = ""  # starts its error messages
    flags: bool = False  # keys are spelled `--like-this` in them
    references: bool = False  # `${...}` names another key or the environment, as in YAML; else plain text

    def spell(self, key: str) -> str:
        """The name of a setting as the user of this layer types it."""
        return flag_name(key) if self.flags else key


def flag_name(key: str) -> str:
    """detail_weight -> --detail-weight"""
    return "--" + key.replace("_", "-")


def yaml_layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of a YAML file: its bases first. above: the resolved files that led here by `base:`."""
    path = located(path)
    if path.resolve() in above:
        raise ValueError(f"{path}: its chain of `base:` files comes back to it")
    try:
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_text(path))), resolve=False)
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = _one_line(error).removeprefix(f"{path}").lstrip(", ")
        chain = f" (the base of {above[-1]})" if above else ""
        raise ValueError(f"{path}{chain}: cannot read this YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a settings file is a mapping of keys, got a {type(values).__name__}")
    named = {str(key): value for key, value in values.items()}
    base = named.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"{path}: base must be the name of one YAML file, got {base!r}")
    below = [] if base is None else yaml_layers(path.parent / base, (*above, path.resolve()))
    return [*below, Layer(named, f"{path}: ", references=True)]


def merge_layers(schema: type[T], layers: Sequence[Layer], where: str = "") -> T:
    """Merge layers over the defaults; errors name layer and key, or begin with `where` for missing ones."""
    config = copy.deepcopy(defaults(schema))  # type: ignore[arg-type]
    if split := getattr(schema, "layers", None):  # a value that stands for several
        layers = [replace(layer, values=part) for layer in layers for part in split(layer.values)]
    for layer in layers:
        leaves = list(_leaves(schema, layer, layer.values))
        try:
            config = _laid(config, layer, leaves)
        except MISTAKES:
            for leaf in leaves:  # one by one, to name the wrong one
                try:
                    config = _laid(config, layer, [leaf])
                except MISTAKES as error:
                    key, hint, value = leaf
                    shown = ",".join(map(str, value)) if isinstance(value, list) else repr(value)
                    wrong = f"{layer.spell(key)} must be {type_name(hint)}, got {shown}"
                    raise ValueError(f"{layer.source}{wrong}") from error
        try:
            check_values(schema, config, layer.spell, is_open=is_open)
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"{layer.source}{_one_line(error)}") from error
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            about, last = {}, layers[-1] if layers else Layer({})
            for key in missing:  # what is typed by position goes by another name
                rule = flat_settings(schema)[key][0].metadata
                positional = [name for name in rule.get("aliases", ()) if last.flags and name[0] != "-"]
                about[positional[0] if positional else last.spell(key)] = rule.get("help")
            listed = "; ".join(f"{name}: {text}" for name, text in about.items())
            raise ValueError(f"missing {', '.join(about)} ({listed})")
        places = []
        for key in flat_settings(schema) if Path.cwd() != ROOT else ():  # there names are right as they are
            value = OmegaConf.select(config, key)
            if isinstance(value, str | Path) and (place := located(value)) != Path(value):
                places.append((key, Path, place.as_posix()))
        settings = OmegaConf.to_object(_laid(config, Layer({}), places) if places else config)
        check_settings(settings)
    except (ValueError, OmegaConfBaseException) as error:
        raise ValueError(f"{where}{_one_line(error)}") from error
    return settings  # type: ignore[return-value]


def is_open(node: Any, name: str) -> bool:
    """Whether a value of a node is missing, or refers to another."""
    return OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)


def _laid(config: Any, layer: Layer, leaves: Iterable[tuple[str, Any, Any]]) -> Any:
    """The configuration with (key, type, value) of a layer, in one merge: each is as dear as the whole."""
    values: dict[str, Any] = {}
    for key, hint, value in leaves:
        if isinstance(value, bool) and not {bool, str} & set(members(hint)):
            raise TypeError  # OmegaConf would read true as the number 1.
        *sections, name = key.split(".")
        part = reduce(lambda above, section: above.setdefault(section, {}), sections, values)
        part[name] = value if layer.references else _literal(value)
    return OmegaConf.unsafe_merge(config, values)


def layer_merger(schema: type[T], below: Sequence[Layer]) -> Callable[[Layer], T]:
    """layer -> `merge_layers(schema, [*below, layer])`, the same settings and errors, for many layers.

    A merge goes through the whole configuration. So what has its type already, in a layer without
    a mistake, is laid over the values of the lower layers, which earlier merges have shown.
    """
    hints, shown = type_hints(schema), dict[str, Any]()  # type: ignore[arg-type]

    def merge(layer: Layer) -> T:
        given: dict[str, Any] = {}
        try:
            for name, value in layer.values.items():
                if value is not None and (other := other_unit(name)) in hints:
                    given[other] = None
                given[name] = _typed(hints.get(name), value)
            if given.keys() | shown.keys() == hints.keys():
                return schema(**{**shown, **given})
        except (TypeError, ValueError, OverflowError):
            pass  # merged below, for the conversion or for the words of the error
        merged = merge_layers(schema, [*below, layer])
        if layer.values.keys() <= hints.keys() and "${" not in str(below):  # a reference may be to this layer
            touched = {*layer.values, *map(other_unit, layer.values)}
            shown.update({name: getattr(merged, name) for name in hints.keys() - touched})
        return merged

    return merge


def _typed(hint: Any, value: Any) -> Any:
    """A value that has the type of its setting, or that JSON writes as this type; TypeError for any other."""
    kind, *more = members(hint)
    if value is None and type(None) in get_args(hint):
        return None
    if get_origin(kind) is tuple and type(value) is list and not more:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(_typed(*pair) for pair in zip(kinds, value, strict=True))
    fits = type(value) is kind or (kind, type(value)) in ((float, int), (Path, str))
    # OmegaConf reads ??? as missing and ${...} as a reference.
    if more or not fits or kind not in (bool, int, float, str, Path) or value == "???" or "${" in str(value):
        raise TypeError(f"{value!r} is not yet {hint}")
    elsewhere = kind in (str, Path) and Path.cwd() != ROOT
    return kind(located(value).as_posix() if elsewhere and located(value) != Path(value) else value)


def _leaves(schema: type, layer: Layer, values: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, type, value) of every setting in a layer; a key that the schema does not know is refused."""
    hints, renamed = type_hints(schema), former_names(schema, prefix)
    for given, value in values.items():
        key = renamed.get(f"{prefix}{given}", f"{prefix}{given}")
        name = key.removeprefix(prefix)
        if name != given:
            log.warning("%s%s is now %s", layer.source, layer.spell(f"{prefix}{given}"), layer.spell(key))
        if name in getattr(schema, "REMOVED", ()):
            log.warning("%s%s has no effect any more", layer.source, layer.spell(key))
            continue
        if name not in hints:
            raise ValueError(f"{layer.source}{nearest(key, flat_settings(schema, prefix), 'key')}")
        section, other = section_of(hints[name]), other_unit(name)
        if other in hints and value is not None:  # in fractions, or in pixels: the upper layer decides
            typed = [str(item).strip() for item in value] if isinstance(value, list | tuple) else []
            if typed and all(item.endswith("px") for item in typed):
                value, (other, name) = [item.removesuffix("px") for item in typed], sorted((name, other))
            yield f"{prefix}{other}", hints[other], None
            key = f"{prefix}{name}"
        if section is not None and isinstance(value, Mapping):
            yield from _leaves(section, layer, value, f"{key}.")
        else:
            yield key, hints[name], value


def other_unit(key: str) -> str:
    """box -> box_px and back: the key of the same value in the other unit, where a schema has both."""
    return key.removesuffix("_px") if key.endswith("_px") else f"{key}_px"


def former_names(schema: type, prefix: str = "") -> dict[str, str]:
    """Former key -> today's key of every setting that was renamed."""
    found: dict[str, str] = {}
    for key, (field, _) in flat_settings(schema, prefix).items():
        found |= {key.removesuffix(field.name) + old: key for old in field.metadata.get("was", ())}
    return found


def nested(key: str, value: Any) -> dict[str, Any]:
    """a.b, 3 -> {a: {b: 3}}"""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _literal(value: Any) -> Any:
    """A value whose texts OmegaConf leaves as they are: `${` is escaped, and backslashes before it."""
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n    full_key")[0].split())
