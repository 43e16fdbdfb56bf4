"""Commands read their options before anything heavy is imported: `--help` and a typo are answered at once."""

import gc
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from compose.schema import command_modules
from ldm.settings.cli import command, new_app, run_app
from ldm.settings.config import CheckedSettings
from ldm.settings.later import later, later_names
from tests.conftest import ROOT

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "pytorch_lightning", "scipy.stats")


# In one process: every command is imported and its app is built, then wrong options are refused.
PROBE = """
import importlib, json, sys
from ldm.settings.cli import run_app

heavy, modules, refused = json.loads(sys.argv[1])
apps, found = {}, {}
for module in modules:
    apps[module] = importlib.import_module(module).build_app
    apps[module]()
    found[module] = sorted(set(heavy) & set(sys.modules))
codes = [run_app(apps[module], words) for module, words in refused]
print(json.dumps([found, codes, sorted(set(heavy) & set(sys.modules))]))
"""
PLACE = ["--background", "a.png", "--object", "b.png"]
REFUSED = [
    ("run_inference", ["image", "--stepz", "3"]),
    ("run_inference", ["image", *PLACE]),
    ("run_inference", ["image", *PLACE, "--box", "0.5,0.5,0.2,0.2"]),
    ("run_inference", ["image", *PLACE, "--box", "0.1,0.1,0.2,0.2", "--scheduler", "unipcc"]),
    ("run_inference", ["image", *PLACE, "--box", "0.1,0.1,0.2,0.2"]),
    ("inpainting.paint", ["--image", "a.png", "--masks", "b.png", "--prompts", "a cube"]),
    ("inpainting.dream", ["--image", "README.md", "--masks", "README.md,b.png"]),
    ("llava_bifrost.predict.__main__", ["image", "--image", "a.png", "--instruction", "b"]),
    ("run_inference", ["batch", "jobs.jsonl", "--shard", "4/4"]),
    ("run_inference", ["batch", "jobs.jsonl"]),
    ("run_inference", ["job", "job.yaml"]),
    ("llava_bifrost.predict.__main__", ["jsonl", "--jobs", "jobs.jsonl"]),
    ("run_train_bifrost", ["configs/bifrost.yaml", "train.lr=-1"]),
    ("inpainting.paint", ["--image", "a.png", "--scheduler", "unipcc"]),
    ("inpainting.dream", ["--image", "a.png", "--temperature", "1", "--no-constrained"]),
    ("inpainting.data.ops", ["build", "--mode", "burn"]),
    ("llava_bifrost.train", ["configs/llava_bifrost/train.yaml", "codec=voxels"]),
    ("llava_bifrost.predict.__main__", ["image", "--image", "a.png", "--instruction", "b", "--dtype", "fp9"]),
    ("cldm.convert.__main__", ["export", "--source", "a", "--out", "a.txt"]),
    ("compose.contact_sheet", ["--out", "sheet.png"]),
    ("tiny.locator.train", ["configs/tiny/locator.yaml", "placement.lr=-1"]),
    ("tiny.depth.train", ["configs/tiny/depth.yaml", "network.sise=64"]),
    ("tiny.shadow.train", ["configs/tiny/shadow.yaml", "scenes.trian=4"]),
    ("tiny.prompter.evaluate", ["--most", "0"]),
    ("tiny.prompter.scenes", ["--world", "patterned"]),
    ("tiny.bundle", ["depht"]),
    ("benchmarks.size", ["--pairs", "0"]),
    ("benchmarks.full_size", ["--precision", "fp9"]),
    ("benchmarks.campaign", ["--only", "nothing"]),
    ("scripts.docs.make_teaser", ["--hieght", "3"]),
    ("scripts.docs.draw_figure", ["--examples"]),
]


def test_no_command_imports_heavy_libraries_before_its_work_begins():
    modules = list(command_modules())
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    modules += [f"benchmarks.{file.stem}" for file in files if "run_module(build_app)" in file.read_text()]
    assert len(modules) >= 54
    given = json.dumps([HEAVY, modules, REFUSED])
    run = subprocess.run(
        [sys.executable, "-c", PROBE, given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, codes, at_last = json.loads(run.stdout.splitlines()[-1])
    assert {module: names for module, names in found.items() if names} == {}
    assert codes == [2] * len(REFUSED), run.stderr
    assert at_last == []
    assert run.stderr.count("error: ") == len(REFUSED)


@dataclass(frozen=True)
class Empty(CheckedSettings):
    """Nothing is set."""


def test_work_named_by_a_string_is_documented_and_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_work.py").write_text('def run(settings):\n    """Do it."""\n    print("done")\n')
    monkeypatch.syspath_prepend(tmp_path)

    def build():
        app = new_app("Work.")
        app.command("run")(command(Empty, later("some_work:run")))
        return app

    assert "some_work" not in sys.modules
    assert run_app(build, ["run", "--help"]) == 0
    assert "Do it." in capsys.readouterr().out
    assert "some_work" not in sys.modules
    assert run_app(build, ["run"]) == 0
    assert capsys.readouterr().out == "done\n"
    assert sys.modules.pop("some_work")


@pytest.mark.parametrize("name", ["some_other_work:run", "ldm.settings.later:missing", "ldm.settings.later"])
def test_work_that_does_not_exist_is_noticed_when_the_app_is_built(name):
    with pytest.raises(ValueError, match=rf"{name}: no such function"):
        later(name)


def test_names_of_a_package_are_found_when_they_are_asked_for():
    find = later_names("ldm", {"seed_of": "seeds"})
    assert find("seed_of")("a", 1) == find("seed_of")("a", 1) >= 0
    with pytest.raises(AttributeError, match="module 'ldm' has no attribute 'other'"):
        find("other")


def test_what_is_imported_is_looked_through_for_garbage_by_nobody_and_once_only(tmp_path, monkeypatch):
    (tmp_path / "of_this_test.py").write_text(
        "KEPT = [[] for _ in range(5000)]\ndef work(): return len(KEPT)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work, counts = later("of_this_test:work"), [gc.get_freeze_count()]
    for _ in range(2):
        assert work() == 5000
        assert gc.isenabled()
        counts.append(gc.get_freeze_count())
    assert counts[1] - counts[0] > 5000
    assert counts[2] <= counts[1]
    (tmp_path / "broken.py").write_text("import of_this_test\ndef work(): ...\nraise ValueError(1)\n")
    with pytest.raises(ValueError, match="^1$"):
        later("broken:work")()
    assert gc.isenabled()


def test_a_composite_at_a_given_box_imports_no_other_command_s_work():
    others = ("llava_bifrost.locator", "inpainting.painting", "datasets.scenes", "ldm.metrics.clip")
    code = f"import compose.commands, sys; print([name for name in {others} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
