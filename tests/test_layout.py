"""The tree: who may import whom, what runs at import, sizes; each rule first catches a bad source."""

import ast
import importlib
import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError
from pathlib import Path

import pytest
import yaml

import ldm
from ldm.result import library_versions
from ldm.settings.config import load_config
from scripts import measure_code
from tests import layout_rules as rules
from tests.conftest import ROOT

# Path pattern of a settings file -> "module:dataclass" that it fills. The first match counts.
SCHEMAS: dict[str, str] = {
    "configs/bifrost*.yaml": "cldm.training.settings:RunConfig",
    "configs/tiny/compositor.yaml": "cldm.training.settings:RunConfig",
    "configs/tiny/autoencoder.yaml": "tiny.compositor.autoencoder:AutoencoderTraining",
    "configs/tiny/locator*.yaml": "tiny.locator.train:LocatorTraining",
    "configs/tiny/inpainter.yaml": "tiny.inpainter.train:InpainterTraining",
    "configs/tiny/prompter*.yaml": "tiny.prompter.train:PrompterTraining",
    "configs/tiny/depth*.yaml": "tiny.depth.train:TrainDepthConfig",
    "configs/tiny/shadow.yaml": "tiny.shadow.train:TrainShadowConfig",
    "configs/inpainting/text_to_image/train/*.yaml": (
        "inpainting.models.text_to_image.train_text_to_image_lora:TrainLoraConfig"
    ),
    "configs/inpainting/text_to_image/test/*.yaml": "inpainting.models.text_to_image.config:PaintingsConfig",
    "configs/inpainting/image_to_text/*.yaml": ("inpainting.models.image_to_text.settings:PromptTraining"),
    "configs/datasets.yaml": "datasets.sources.registry:DatasetsConfig",
    "configs/inference.yaml": "compose.settings:CompositeSettings",
    "configs/models.yaml": "ldm.registry.models:Registry",
    "configs/demo.yaml": "compose.settings:CompositeSettings",
    "configs/llava_bifrost/train.yaml": "llava_bifrost.train:TrainConfig",
    "configs/llava_bifrost/train_smoke.yaml": "llava_bifrost.train:TrainConfig",
    "configs/llava_bifrost/build_coco.yaml": "llava_bifrost.build_dataset.coco:CocoBuild",
    "configs/llava_bifrost/build_published.yaml": "llava_bifrost.build_dataset.coco:CocoBuild",
    "configs/llava_bifrost/build_scenes.yaml": "llava_bifrost.settings:ScenesBuild",
}
# Defaults of a command, which may leave required settings to its flags.
PARTIAL = {"configs/inference.yaml"}

MEGABYTE = 2**20
FILE_MB, BUNDLE_MB = 16, 48


def tracked(*patterns: str) -> list[str]:
    """Repository paths of the committed files that match one of the patterns."""
    return [name for name in committed() if any(fnmatch(name, pattern) for pattern in patterns)]


@cache
def committed() -> list[str]:
    """All committed files; in a copy without git every file, less what running the code makes."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    made = {".venv", ".git", "outputs", "runs", "models", "data"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if path.parts[0] not in made and "cache" not in str(path)]


def sources(*patterns: str) -> list[tuple[str, str]]:
    """(path, text) of the tracked files."""
    return [(name, (ROOT / name).read_text(encoding="utf-8")) for name in tracked(*patterns)]


@cache
def own_modules() -> set[str]:
    return {name.split("/")[0].removesuffix(".py") for name in tracked("*.py")}


@cache
def dataset_modules() -> set[str]:
    return {name.split("/")[1].removesuffix(".py") for name in tracked("datasets/*.py")}


def schema_of(path: str, schemas: dict[str, str]) -> type:
    """The dataclass that a settings file fills."""
    named = next((schema for pattern, schema in schemas.items() if fnmatch(path, pattern)), None)
    assert named is not None, f"{path}: no pattern in SCHEMAS matches; say which dataclass it fills"
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)


# Each rule: it catches the bad source, it leaves the good one, and the tree keeps it.


def ranks(path: str, source: str) -> list[str]:
    return rules.wrong_ranks(path, source, own_modules() | {*rules.PACKAGES, "scripts", "tests"})


def bare(path: str, source: str) -> list[str]:
    return rules.bare_datasets(path, source, dataset_modules() | {"geometry"})


CASES = [
    (ranks, "ldm/a.py", "import datasets.geometry", "import torch"),
    (ranks, "ldm/a.py", "def f():\n    from cldm.model import M", "from ldm.b import c"),
    (ranks, "datasets/a.py", "from cldm.model import M", "from ldm.images import resize"),
    (ranks, "cldm/a.py", "from inpainting.prompts import P", "from datasets.pairs import Pair"),
    (ranks, "llava_bifrost/a.py", "import cldm", "from llava_bifrost.language.answer import L"),
    (ranks, "cldm/a.py", "from compose import compose", "from cldm.b import c"),
    (ranks, "cldm/a.py", "from scripts.sheet import make", "import compositor"),
    (ranks, "compose/a.py", "from tiny.loop import a", "from cldm.model import M"),
    (ranks, "scripts/a.py", "from tests.conftest import ROOT", "from compose import compose"),
    (ranks, "clients/python/a.py", "from ldm.images import resize", "import json"),
    (ranks, "clients/comfyui_bifrost/a.py", "import compose", "from .nodes import Compose"),
    (rules.early_extras, "ldm/a.py", "import torchvision.ops", "def f():\n    import torchvision"),
    (rules.early_extras, "ldm/a.py", "try:\n    from lpips import L\nfinally:\n    pass", "import torch"),
    (rules.early_extras, "a.py", "class A:\n    import timm", "from datasets.timm import a"),
    (rules.import_effects, "ldm/a.py", "os.environ['A'] = '1'", "def f():\n    return os.environ['A']"),
    (rules.import_effects, "a.py", "sys.path.insert(0, '.')", "if __name__ == '':\n    main(sys.path)"),
    (rules.import_effects, "ldm/a.py", "MODEL = A.from_pretrained('a')", "log = logging.getLogger('a')"),
    (rules.import_effects, "ldm/a.py", "main()", "X = main"),
    (rules.import_effects, "ldm/a.py", "@f(load('a'))\ndef g(): ...", "@f\ndef g():\n    load('a')"),
    (bare, "cldm/a.py", "import datasets", "from datasets.geometry import box"),
    (bare, "cldm/a.py", "import datasets.geometry as g", "from datasets import geometry"),
    (bare, "cldm/a.py", "from datasets import load_dataset", "from cldm import datasets"),
    (rules.too_long, "a.sh", "x\n" * 301, "x\n" * 300),
    (rules.too_long, "a.py", "def f():\n" + "    x\n" * 80, "def f():\n" + "    x\n" * 79),
    (rules.prints, "a.py", "def f():\n    print(1)", "def f():\n    file.print(1)"),
    (rules.not_ascii, "a.py", "a = '\u00f6'", "a = 'o'"),
    (rules.replaced_results, "a.py", "write_json(a.out, {})", "write_json(a.out / 'a.json', {})"),
    (rules.replaced_results, "a.py", "write_png(out.with_suffix('.a'), b)", "write_result({out: b})"),
    (rules.replaced_results, "a.py", "write_all_atomic({a.report: b})", "write_all_atomic({b: a.report})"),
    (rules.replaced_results, "a.py", "Path(table).write_text('a')", "notes.write_text('a')"),
    (rules.replaced_results, "a.py", "write_png(beside(out, '.a'), b)", "write_png(place(out, 'a'), b)"),
    (rules.machine_paths, "a.md", "see /home/me/a", "see https://host/home/a"),
    (rules.machine_paths, "a.md", "cd ../shared", "cd shared"),
]
TEXTS = ["*.py", "*.sh", "*.md", "*.yaml", "*.yml", "*.toml", "*.txt", "*.cff", "*.json", "*.ipynb"]
RULES = {
    ranks: ["*.py"],
    rules.early_extras: ["*.py"],
    rules.import_effects: ["*.py"],
    bare: ["*.py"],
    rules.too_long: ["*.py", "*.sh"],
    rules.prints: ["*.py"],
    rules.not_ascii: ["*.py", "*.sh"],
    rules.machine_paths: TEXTS,
    rules.replaced_results: ["*.py"],
}
# Files a rule does not hold for. Answers of `predict` are continued; `anchors` refuses a file that is there,
# the table of failures any but its own; the export keeps what was there; commands.md is edited in place.
EXEMPT = {
    rules.machine_paths: ["tests/*"],
    rules.replaced_results: [
        "tests/*", "llava_bifrost/predict/run.py", "inpainting/data/downloader.py", "cldm/convert/export.py",
        "scripts/docs/make_command_docs.py",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"), CASES, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_rule_catches_the_bad_source_and_leaves_the_good_one(rule, path, bad, good):
    assert rule(path, bad)
    assert not rule(path, good)


@cache
def looked_through() -> tuple[dict[Callable, int], dict[Callable, list[str]]]:
    """How many files each rule holds for, and what it finds; file by file, so that each is parsed once."""
    counts, found = dict.fromkeys(RULES, 0), {rule: [] for rule in RULES}
    for path, source in sources(*TEXTS):
        for rule, patterns in RULES.items():
            held = any(fnmatch(path, pattern) for pattern in patterns)
            if held and not any(fnmatch(path, left) for left in EXEMPT.get(rule, ())):
                counts[rule] += 1
                found[rule] += rule(path, source)
    return counts, found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps_the_rule(rule):
    counts, found = looked_through()
    assert counts[rule]
    assert found[rule] == []


def test_imports_form_no_circle_and_the_rooms_at_most_six_floors():
    """Modules first; then the rooms: packages, the folders of commands, and the commands at the top."""
    with pytest.raises(CycleError):
        rules.levels(rules.import_graph({"a/b.py": "from a import c", "a/c.py": "def f():\n    import a.b"}))
    assert rules.levels({"a": {"b"}, "b": {"c"}}) == 3
    product = [item for item in sources("*.py") if not item[0].startswith("tests/")]
    modules = rules.import_graph(dict(product))
    assert rules.levels(modules) > 1
    rooms: dict[str, set[str]] = {}
    for module, below in modules.items():
        home = module.split(".")[0]
        rooms.setdefault(home, set()).update(
            name.split(".")[0] for name in below if name.split(".")[0] != home
        )
    assert rules.levels(rooms) <= 6


def test_a_thought_stands_in_half_the_files_of_the_first_layout():
    """The chains of `scripts.measure_code`, each whole: what they name is there and is read."""
    written = yaml.safe_load(measure_code.THOUGHTS.read_text(encoding="utf-8"))
    paths = {path for thought in written.values() for path in thought["chain"]}
    trees = {path: ast.parse((ROOT / path).read_text()) for path in paths}
    counted = list(measure_code.thoughts(trees))
    assert sum(now for *_, now in counted) <= sum(before for _, before, _ in counted) // 2
    with pytest.raises(ValueError, match="has no make_trainable, or nothing before it reads it"):
        list(measure_code.thoughts({**trees, "ldm/mllm/training.py": ast.parse("")}))


def test_our_datasets_package_is_the_one_that_is_found():
    module = importlib.import_module("datasets.geometry")
    assert Path(str(module.__file__)).is_relative_to(ROOT)
    package = importlib.import_module("datasets")
    assert {"Dataset", "IterableDataset"} <= set(vars(package)), "transformers and accelerate look these up"


def test_the_type_checker_sees_every_package():
    settings = (ROOT / "pyproject.toml").read_text().split("[tool.mypy]")[1]
    checked = next(line for line in settings.splitlines() if line.startswith("files"))
    homes = {name.split("/")[0] for name in tracked("*.py")} - {"tests"}
    unchecked = {name for name in homes if f'"{name}"' not in checked and not name.startswith("run_")}
    assert unchecked == set()


def test_the_version_is_the_same_everywhere():
    """ldm/__init__.py holds it; the newest entry of CHANGELOG.md and CITATION.cff name the same one."""
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = re.search(r"^version: (\S+)\ndate-released: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert newest is not None
    assert cited is not None
    assert newest.groups() == cited.groups()
    assert newest[1] == ldm.__version__ == library_versions()["bifrost"]


def oversized(sizes: dict[str, int]) -> list[str]:
    """Files above the limit for one file, and the bundle as a whole. sizes: bytes by path."""
    found = [name for name, size in sizes.items() if size > FILE_MB * MEGABYTE]
    bundle = sum(size for name, size in sizes.items() if name.startswith("assets/tiny/"))
    return found + (["assets/tiny"] if bundle > BUNDLE_MB * MEGABYTE else [])


def test_sizes_are_limited_and_the_tree_keeps_them():
    assert oversized({"a": 17 * MEGABYTE}) == ["a"]
    assert oversized({f"assets/tiny/{i}": 13 * MEGABYTE for i in range(4)}) == ["assets/tiny"]
    assert oversized({"assets/tiny/a": 16 * MEGABYTE, "b": 16 * MEGABYTE}) == []
    assert oversized({name: (ROOT / name).stat().st_size for name in tracked("*")}) == []


def test_every_settings_file_loads():
    with pytest.raises(AssertionError, match="SCHEMAS"):
        schema_of("configs/unknown.yaml", {"configs/known.yaml": "ldm.settings.config:Layer"})
    for path in tracked("configs/*.yaml"):
        try:
            load_config(schema_of(path, SCHEMAS), ROOT / path)
        except ValueError as error:
            if path not in PARTIAL or f"{path}: missing " not in str(error):
                raise
