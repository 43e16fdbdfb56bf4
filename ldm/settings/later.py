"""Work that a command imports when it begins, so that `--help` and wrong options are answered at once."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def later(name: str) -> Callable[..., Any]:
    """The function "package.module:function", imported when it is called; its help is read from the file."""
    module, _, wanted = name.partition(":")
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))

    def work(*given: Any, **named: Any) -> Any:
        function = getattr(importlib.import_module(module), wanted)
        quiet_libraries()
        return function(*given, **named)

    [node] = (node for node in tree.body if getattr(node, "name", "") == wanted)
    work.__doc__ = ast.get_docstring(node)  # type: ignore[arg-type]  # a function or class
    return work


def quiet_libraries() -> None:
    """The libraries that are imported report errors only; no bars for milliseconds of reading weights."""
    for library in {"diffusers", "transformers"} & set(sys.modules):
        messages = importlib.import_module(f"{library}.utils.logging")
        messages.set_verbosity_error()
        messages.disable_progress_bar()
