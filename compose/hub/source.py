"""Our modules -> one file that stands alone: what a class needs, as it is written, without an import of ours.

A definition comes with everything that it reads; a method only where something calls it by its name.
"""

import ast
import symtable
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from ldm.files import ROOT, read_text

CALLED = ("forward", "save_pretrained", "to_json_string")  # by torch, users and diffusers


class Definition(NamedTuple):
    """A definition at the top level of a module; without a name the module."""

    module: str
    name: str


def our_file(module: str) -> Path | None:
    """Where a module of this repository is, None for any other."""
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


class Module:
    """What a module defines, and what its imports mean: `ours` a name, `foreign` an import statement."""

    def __init__(self, name: str) -> None:
        text = read_text(our_file(name) or Path(name))
        tree = ast.parse(text)
        self.lines, self.about = text.splitlines(), (ast.get_docstring(tree) or "").partition("\n")[0]
        self.defined, self.foreign = dict[str, list[Any]](), dict[str, str]()
        self.ours = dict[str, Definition]()
        for node in tree.body:
            for part in node.body if isinstance(node, ast.If) else [node]:  # of TYPE_CHECKING
                if isinstance(part, ast.Import | ast.ImportFrom):
                    self.add_import(part)
                targets = [*getattr(part, "targets", ()), getattr(part, "target", ast.Pass())]
                inside = (each for target in targets for each in ast.walk(target))
                names = {each.id for each in inside if isinstance(each, ast.Name)}
                for name in names | {getattr(part, "name", "")} - {""}:
                    self.defined.setdefault(name, []).append(part)

    def add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for each in node.names:
            name, alias = each.name, each.asname or each.name
            start, source = "import", name
            if isinstance(node, ast.ImportFrom):
                start, source = f"from {node.module} import", f"{node.module}.{name}"
                if our_file(source):
                    self.ours[alias] = Definition(source, "")
                elif our_file(node.module or ""):
                    self.ours[alias] = Definition(node.module or "", name)
            self.foreign[alias.split(".")[0]] = f"{start} {name}{f' as {alias}' if alias != name else ''}"


read_module = cache(Module)


class Bundle:
    """All definitions that some need. left_out: methods CLASS.NAME that are not taken, though named."""

    def __init__(self, needed: Collection[Definition], left_out: Collection[str] = ()) -> None:
        self.kept, self.left_out, self.called = dict.fromkeys(needed), left_out, {*CALLED}
        self.spaces, self.imports = dict[str, str](), {"import types"}
        before = -1
        while before != (before := len(self.kept) + len(self.called)):
            for module, name in list(self.kept):
                for node in read_module(module).defined[name]:
                    inner = [*node.decorator_list, *node.bases, *node.body] if is_class(node) else [node]
                    for part in (part for part in inner if self.takes(node, part)):
                        self.follow(read_module(module), module, part)

    def takes(self, node: Any, part: Any) -> bool:
        """Whether a part of a definition is taken: all but the methods of a class that nothing calls."""
        if not (is_class(node) and isinstance(part, ast.FunctionDef)):
            return True
        named = part.name in self.called or part.name.startswith("__")
        return named and f"{node.name}.{part.name}" not in self.left_out

    def follow(self, known: Module, module: str, part: Any) -> None:
        """Take what a part reads."""
        for node in (each for each in ast.walk(part) if isinstance(each, ast.Attribute)):
            self.called.add(node.attr)
            owner = known.ours.get(node.value.id) if isinstance(node.value, ast.Name) else None
            if owner is not None and not owner.name:
                self.kept.setdefault(Definition(owner.module, node.attr))
        tables = [symtable.symtable(ast.unparse(part), "", "exec")]
        names = dict[str, None]()  # that it reads from its module, or that are built in
        for table in tables:
            tables += table.get_children()
            top = table.get_type() == "module"
            read = (s for s in table.get_symbols() if s.is_global() or top and s.is_referenced())
            names |= dict.fromkeys(symbol.get_name() for symbol in read)
        for name in names:
            place = Definition(module, name) if name in known.defined else known.ours.get(name)
            if place is None and name in known.foreign:
                self.imports.add(known.foreign[name])
            elif place is not None and not place.name:
                self.spaces[name] = place.module
            while place is not None and place.name in (there := read_module(place.module)).ours:
                place = there.ours[place.name]  # it is imported there too
            if place is not None and place.name:
                self.kept.setdefault(place)

    def taken(self, name: Definition) -> Iterator[tuple[int, str]]:
        """(first line, text) of the statements of a definition, without the methods that nothing calls."""
        known = read_module(name.module)
        for node in known.defined[name.name]:
            dropped = [part for part in getattr(node, "body", ()) if not self.takes(node, part)]
            lines = sorted(lines_of(node).difference(*map(lines_of, dropped)))
            yield lines[0], "\n".join(known.lines[number - 1] for number in lines)

    def write(self, about: str) -> str:
        """The file. about: its docstring"""
        names: dict[str, list[str]] = {}
        for module, name in self.kept:
            names.setdefault(module, []).append(name)
        homes = {each: {name.module for name in read_module(each).ours.values()} for each in names}
        below = {each: others & names.keys() for each, others in homes.items()}
        sections, said = [f'"""{about}"""', "\n".join(sorted(self.imports))], dict[str, str]()
        for module in TopologicalSorter(below).static_order():
            statements: dict[int, str] = {}
            for name in names[module]:
                parts = dict(self.taken(Definition(module, name)))
                if said.setdefault(name, str(parts.values())) != str(parts.values()):  # there is one room
                    raise ValueError(f"two modules define {name}, one of them {module}: rename it there")
                statements |= parts
            sections.append(f"# {module}: {read_module(module).about}")
            sections += [statements[line] for line in sorted(statements)]
            for alias in sorted(alias for alias, home in self.spaces.items() if home == module):
                held = ", ".join(f"{name}={name}" for name in names[module])
                sections.append(f"{alias} = types.SimpleNamespace({held})")
        return "\n\n\n".join(sections) + "\n"


def is_class(node: Any) -> bool:
    return isinstance(node, ast.ClassDef)


def lines_of(node: Any) -> set[int]:
    start = min(each.lineno for each in [node, *getattr(node, "decorator_list", [])])
    return {*range(start, node.end_lineno + 1)}
