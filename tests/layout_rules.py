"""The rules of the tree, as functions over one source text each; `test_layout` applies them to every file."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from graphlib import TopologicalSorter

# A file imports only from lower ranks. What is not named here has rank 3: top-level files, scripts, tests ...
RANKS = {"ldm": 0, "datasets": 1, "cldm": 2, "llava_bifrost": 2, "inpainting": 2}
TOP = 3
PACKAGES = (*RANKS, "compose", "tiny")
# They need a torchvision that matches torch, so only the function that uses one imports it.
EXTRAS = {"torchvision", "timm", "lpips", "torch_fidelity", "open_clip"}
# Nothing of this may happen while a module is imported.
EFFECTS = {"from_pretrained", "load", "load_file", "mkdir", "makedirs", "basicConfig", "putenv", "setdefault"}
EFFECTS |= {"seed", "manual_seed", "seed_everything", "set_num_threads", "insert"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+|opt/wheels)/|\.\./shared")
FILE_LINES, FUNCTION_LINES = 300, 80

parsed = lru_cache(maxsize=1)(ast.parse)  # one source, which every rule looks through


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every absolute import, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs at import: no function body, nothing below `if __name__` or `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and re.search("__name__|TYPE_CHECKING", ast.unparse(child.test)):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from (node for part in child.decorator_list for node in ast.walk(part))
        elif not isinstance(child, ast.Lambda):
            yield child
            yield from at_import(child)


def wrong_ranks(path: str, source: str, ours: set[str]) -> list[str]:
    """Imports that point upwards or sideways. ours: the names of all top-level modules of this repository."""
    home = path.split("/")[0].removesuffix(".py")
    rank = RANKS.get(home, TOP)
    found = []
    for line, module in imports_of(parsed(source)):
        target = module.split(".")[0]
        if target not in ours or target == home:
            continue
        sideways = home == "clients" or (rank < TOP and RANKS.get(target, TOP) >= rank)
        # The small networks are trained with the library; only documents and tests know of their trainers.
        tests = target == "tests" and home != "tests"
        tiny = target == "tiny" and home not in ("tests", "scripts", "benchmarks")
        if sideways or tests or tiny:
            found.append(f"{path}:{line}: {home} must not import {module}")
    return found


def early_extras(path: str, source: str) -> list[str]:
    """Module-level imports of a library that is not in the core requirements."""
    nodes = [node for node in at_import(parsed(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = [(line, name) for node in nodes for line, name in imports_of(node)]
    return [f"{path}:{line}: imports {name} early" for line, name in found if name.split(".")[0] in EXTRAS]


def import_effects(path: str, source: str) -> list[str]:
    """What runs at import: a change of the process, a loaded file; in packages, any call as a statement."""
    found = []
    for node in at_import(parsed(source)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        called = node.func if isinstance(node, ast.Call) else None
        verb = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        statement = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        packaged = path.split("/")[0] in PACKAGES
        if name in ("os.environ", "sys.path") or verb in EFFECTS or (statement and packaged):
            found.append(f"{path}:{getattr(node, 'lineno', 0)}: runs at import: {ast.unparse(node)[:60]}")
    return found


def bare_datasets(path: str, source: str, modules: set[str]) -> list[str]:
    """`import datasets`, or a name taken from the package itself. modules: what `datasets` really holds."""
    found = []
    for node in ast.walk(parsed(source)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        plain = isinstance(node, ast.Import) and any(name.split(".")[0] == "datasets" for name in names)
        direct = isinstance(node, ast.ImportFrom) and node.module == "datasets" and not set(names) <= modules
        if plain or direct:
            found.append(f"{path}:{node.lineno}: write `from datasets.<module> import <name>`")
    return found


def too_long(path: str, source: str) -> list[str]:
    """Files above 300 lines and functions above 80."""
    count = source.count("\n")
    found = [f"{path}: {count} lines, at most {FILE_LINES}"] if count > FILE_LINES else []
    for node in ast.walk(parsed(source)) if path.endswith(".py") else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name}: {length} lines, at most {FUNCTION_LINES}")
    return found


def prints(path: str, source: str) -> list[str]:
    """Calls of print; messages go through logging, results through typer.echo."""
    calls = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call)]
    return [f"{path}:{call.lineno}: print" for call in calls if getattr(call.func, "id", "") == "print"]


def not_ascii(path: str, source: str) -> list[str]:
    """Lines with a character outside ASCII."""
    lines = source.splitlines()
    return [f"{path}:{index}: not ASCII" for index, line in enumerate(lines, 1) if not line.isascii()]


def machine_paths(path: str, text: str) -> list[str]:
    """Folders that exist on one machine only."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{path}:{index}: {line.strip()[:80]}" for index, line in lines if MACHINE_PATH.search(line)]


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, also inside functions. sources: repository path -> text."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    graph = {}
    for path, source in sources.items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        named = set()
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names} & modules
                named |= parts or {node.module}
        graph[module] = named & modules - {module}
    return graph


def levels(graph: dict[str, set[str]]) -> int:
    """Floors of a house without circles: the longest chain of imports. CycleError names a circle."""
    floor: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        floor[name] = 1 + max((floor[below] for below in graph.get(name, ())), default=0)
    return max(floor.values())


# Functions and methods that replace a file, and what a user names or lies beside that.
WRITERS = {"write_atomic", "write_all_atomic", "write_json", "write_object", "write_png", "write_mask"}
WRITERS |= {"write_depth", "write_text", "write_bytes", "written_whole", "write_safetensors", "imwrite"}
OUTPUTS = {"out", "report", "table", "failures", "index", "sheet"}


def replaced_results(path: str, source: str) -> list[str]:
    """Writers that replace the very file that a user named; `write_result` keeps what was there."""
    found = []
    for node in ast.walk(parsed(source)):
        called = node.func if isinstance(node, ast.Call) else None
        verb = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if not isinstance(node, ast.Call) or verb not in WRITERS:
            continue
        own = isinstance(called, ast.Attribute) and verb in ("write_text", "write_bytes")
        given = called.value if own else node.args[0]
        for target in given.keys if isinstance(given, ast.Dict) else [given]:
            while isinstance(target, ast.Call):  # settings.out.with_suffix(".txt"), beside(settings.out, ...)
                makes = target.func
                named = target.args if getattr(makes, "id", "") in ("beside", "Path") else [ast.Constant(0)]
                target = makes.value if isinstance(makes, ast.Attribute) else named[0]
            name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
            if name in OUTPUTS:
                found.append(f"{path}:{node.lineno}: {verb} replaces {ast.unparse(target)}")
    return found
