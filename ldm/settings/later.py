"""Work that a command imports when it begins, so that `--help` and wrong options are answered at once."""

import ast
import gc
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def later(name: str) -> Callable[..., Any]:
    """The function "package.module:function", imported when it is called; its help is read from the file."""
    module, _, wanted = name.partition(":")
    spec = importlib.util.find_spec(module)
    tree = ast.parse("" if spec is None else Path(str(spec.origin)).read_text(encoding="utf-8"))
    found = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    if (node := next((node for node in found if node.name == wanted), None)) is None:
        raise ValueError(f"{name}: no such function")

    def work(*given: Any, **named: Any) -> Any:
        new = module not in sys.modules
        gc.disable()  # looking for garbage among what stays takes a quarter of the time of the imports
        try:
            function = getattr(importlib.import_module(module), wanted)
        finally:
            gc.enable()
        if new:
            gc.freeze()  # nor among what stays, later
        quiet_libraries()
        return function(*given, **named)

    work.__doc__ = ast.get_docstring(node)
    return work


def later_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names (name -> its module) are imported when one is asked for."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find


def quiet_libraries() -> None:
    """The libraries that are imported report errors only; no bars for milliseconds of reading weights."""
    for library in {"diffusers", "transformers"} & set(sys.modules):
        messages = importlib.import_module(f"{library}.utils.logging")
        messages.set_verbosity_error()
        messages.disable_progress_bar()
