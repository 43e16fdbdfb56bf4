"""Size and fragmentation of the product code: everything but tests, documents and generated files.

    python -m scripts.measure_code                 the table
    python -m scripts.measure_code --list          also the functions with one use, the shortest first

Uses are counted for the functions of modules, not for methods: every name or attribute anywhere that reads
the function's name, recursion apart; functions that share a name share their uses. Lines are those of the
body without the docstring.
A thought (measure_code.yaml) is a chain of definitions from question to answer; one before reads each.
"""

import ast
import subprocess
from collections import Counter, defaultdict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ldm.files import read_text
from ldm.settings.cli import run_module, single_app

PRODUCT = ("ldm", "datasets", "cldm", "llava_bifrost", "inpainting", "compose", "tiny", "scripts",
           "benchmarks", "clients")  # fmt: skip
SMALL, MOST_PARAMETERS = 5, 7  # lines of a function that is inlined where that reads better; parameters
PROTOCOL = {"build_app"}  # `run_module` and the tests know every command by it
THOUGHTS = Path(__file__).with_suffix(".yaml")


Function = namedtuple("Function", "path line name lines parameters method")  # of the product code


def functions(path: str, tree: ast.Module) -> Iterator[Function]:
    """Every function of a file; parameters without self and cls."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(item.arg not in ("self", "cls") for item in given)
            body = node.body[ast.get_docstring(node) is not None :]
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            yield Function(path, node.lineno, node.name, lines, count, node not in tree.body)


def uses(tree: ast.AST) -> Counter[str]:
    """How often each name is read as a name or an attribute, less reads of a function inside itself."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = (getattr(item, "id", getattr(item, "attr", "")) for item in ast.walk(node))
            found[node.name] -= sum(name == node.name for name in inside)
    return found


def thoughts(trees: dict[str, ast.Module]) -> Iterator[tuple[str, int, int]]:
    """Each thought with its files before and now; ValueError where its chain is broken."""
    for question, thought in yaml.safe_load(read_text(THOUGHTS)).items():
        read = Counter[str]()
        for path, names in thought["chain"].items():
            body = trees[path].body if path in trees else []
            nodes = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            for name in names.split():
                if name not in nodes or (read and not read[name]):
                    raise ValueError(f"{question}: {path} has no {name}, or nothing before it reads it")
                read += uses(nodes[name])
        yield question, thought["before"], len(thought["chain"])


def measure_tree(
    listed: Annotated[bool, typer.Option("--list", help="also what could be inlined or renamed")] = False,
) -> dict[str, str]:
    """Print the table."""
    files = subprocess.check_output(["git", "ls-files", "*.py"], text=True).split()
    paths = [path for path in files if path.split("/")[0] in PRODUCT or "/" not in path]
    texts = {path: read_text(Path(path)) for path in paths if Path(path).is_file()}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    found = [function for path, tree in trees.items() for function in functions(path, tree)]
    used = sum((uses(tree) for tree in trees.values()), Counter())
    plain, many = [f for f in found if not f.method], sum(f.parameters > MOST_PARAMETERS for f in found)
    once = [function for function in plain if used[function.name] == 1]
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        defined = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        for name in (node.name for node in defined if not node.name.startswith("_")):
            homes[name].append(path)
    names = {name: paths for name, paths in homes.items() if len(paths) > 1 and name not in PROTOCOL}
    table = {
        "files": f"{len(texts)}",
        "lines": f"{sum(text.count(chr(10)) for text in texts.values())}",
        "functions, methods": f"{len(plain)}, {len(found) - len(plain)}",
        "functions with one use, by name": f"{len(once)} ({100 * len(once) / len(plain):.1f} %)",
        f"of these at most {SMALL} lines": f"{sum(function.lines <= SMALL for function in once)}",
        f"with more than {MOST_PARAMETERS} parameters": f"{many}",
        "public names in two or more modules": f"{len(names)}"}  # fmt: skip
    counted = list(thoughts(trees))
    counted.append(("all of these", sum(row[1] for row in counted), sum(row[2] for row in counted)))
    table |= {f"files behind {question}": f"{now} ({before})" for question, before, now in counted}
    for name, value in table.items():
        typer.echo(f"{name:38} {value}")
    if listed:
        for function in sorted(once, key=lambda function: function.lines):
            typer.echo(f"{function.path}:{function.line} {function.name}: one use, {function.lines} lines")
        for name, paths in sorted(names.items()):
            typer.echo(f"{name}: {', '.join(paths)}")
    return table


build_app = single_app(measure_tree)

if __name__ == "__main__":
    run_module(build_app)
