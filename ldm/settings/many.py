"""Settings of many jobs over the same lower layers: what has its type already needs no conversion.

OmegaConf copies the whole configuration for every value, 20 ms a job; a list may hold 100,000.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from ldm.files import ROOT, located
from ldm.settings.config import Layer, merge_layers
from ldm.settings.schema import CheckedSettings, members, other_unit, type_hints

T = TypeVar("T", bound=CheckedSettings)


def layer_merger(schema: type[T], below: Sequence[Layer]) -> Callable[[Layer], T]:
    """layer -> `merge_layers(schema, [*below, layer])`: the same settings, the same errors.

    The lower layers are checked with the first upper one. A value that needs conversion, and a layer with a
    mistake, go through `merge_layers`.
    """
    start: dict[str, Any] = {}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        if field.default_factory is not MISSING:
            start[field.name] = field.default_factory()
        elif field.default is not MISSING:
            start[field.name] = field.default
    sound = False

    def merge(layer: Layer) -> T:
        nonlocal sound
        if sound:
            try:
                return schema(**_laid_over(schema, start, layer.values))
            except (TypeError, ValueError, OverflowError):
                pass  # below, for the words of the error
        merged = merge_layers(schema, [*below, layer])
        sound = True
        return merged

    try:
        for layer in (Layer(start), *below):
            start = _laid_over(schema, start, layer.values)
    except (TypeError, ValueError):
        return lambda layer: merge_layers(schema, [*below, layer])
    return merge


def _laid_over(schema: type, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them; TypeError for what needs conversion or is not known."""
    values, hints, elsewhere = dict(below), type_hints(schema), Path.cwd() != ROOT
    for name, given in above.items():
        value = _of_type(hints.get(name), given)
        if elsewhere and isinstance(value, str | Path) and (place := located(value)) != Path(value):
            value = type(value)(place.as_posix())
        if value is not None and (other := other_unit(name)) in hints:
            values[other] = None
        values[name] = value
    return values


def _of_type(hint: Any, value: Any) -> Any:
    """A value that has the type of its setting, or that JSON writes as this type; TypeError for any other."""
    (kind, *more), given = members(hint), Path if isinstance(value, Path) else type(value)
    if value is None and type(None) in get_args(hint):
        return None
    if get_origin(kind) is tuple and given in (list, tuple) and not more:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(_of_type(*pair) for pair in zip(kinds, value, strict=True))
    text, fits = str(value), given is kind or (kind, given) in ((float, int), (Path, str))
    # OmegaConf reads ??? as missing and ${...} as a reference.
    if more or kind not in (bool, int, float, str, Path) or not fits or text == "???" or "${" in text:
        raise TypeError(f"{value!r} is not yet {hint}")
    return kind(value)
