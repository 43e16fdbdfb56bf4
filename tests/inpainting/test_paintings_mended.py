"""Two builds at once do not meet, and a build mends what its folder has lost since."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from textblob import en

from inpainting.data.ops import build_app, build_paintings
from inpainting.data.steps.regions import RegionSettings, make_entities, make_masks
from inpainting.data.steps.texts import RootSettings, extract_roots, rule_root
from ldm.journal import read_lines
from ldm.locks import one_writer
from ldm.settings.cli import run_app
from tests.inpainting.painting_set import PaintingSet, tree, write_set
from tests.inpainting.test_paintings_build import settings

ENTITY = "entities/gina_dancers"


@pytest.fixture
def built(tmp_path: Path) -> PaintingSet:
    made = write_set(tmp_path)
    build_paintings(settings(made))
    return made


def files(made: PaintingSet) -> dict[str, object]:
    """All but the journals, which tell of the second time; fields are in any order."""
    found = {name: data for name, data in tree(made.out).items() if "stamp_" not in name}
    return {
        name: json.loads(data or b"0") if name.endswith(".json") else data for name, data in found.items()
    }


def without(field: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        document = json.loads(path.read_text())
        for entry in document.values():
            del entry[field]
        path.write_text(json.dumps(document, indent=4))

    return change


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (f"{ENTITY}/annotations.json", without("caption")),  # by two builds at once
        (f"{ENTITY}/annotations.json", without("noun_chunk_root")),
        (f"{ENTITY}/annotations.json", Path.unlink),
        (f"{ENTITY}/annotations.json", lambda path: path.write_text("{}")),
        (f"{ENTITY}/llava.json", Path.unlink),
        (f"{ENTITY}/llava.json", lambda path: path.write_text('{"mask_0": "another"}')),
        (f"{ENTITY}/mask_1.png", Path.unlink),
        ("masks/gina_dancers/mask_2.png", empty),
        ("images/test/carl_portrait.jpg", Path.unlink),
    ],
)
def test_a_build_mends_what_was_lost(built: PaintingSet, name: str, damage: Callable[[Path], None]) -> None:
    before = files(built)
    damage(built.out / name)
    assert files(built) != before
    build_paintings(settings(built))
    assert files(built) == before


def test_a_build_that_lost_nothing_changes_no_journal(built: PaintingSet) -> None:
    before = tree(built.out)
    build_paintings(settings(built))
    assert tree(built.out) == before


def test_a_second_build_is_refused_in_one_line(built: PaintingSet, capsys) -> None:
    given = settings(built)
    flags = ["--image-dir", given.image_dir, "--annotations-path", given.annotations_path]
    flags += ["--captions-path", given.captions_path, "--split-df-path", given.split_df_path]
    argv = ["build", *map(str, flags), "--out-dir", str(built.out), "--roots", "rule"]
    before = tree(built.out)
    with one_writer(built.out):
        assert run_app(build_app, argv) == 2
        shown = capsys.readouterr().err
        assert f"error: {built.out}: another process is writing it" in shown
        assert shown.count("\n") == 1
    assert run_app(build_app, argv) == 0
    assert tree(built.out) == before


@pytest.mark.parametrize("step", ["masks", "entities", "roots"])
def test_a_step_is_refused_while_another_process_writes_its_folder(built: PaintingSet, step: str) -> None:
    region = RegionSettings(built.annotations, image_dir=built.images, out_dir=built.out / step)
    work: dict[str, Callable[[], object]] = {
        "masks": lambda: make_masks(region),
        "entities": lambda: make_entities(region),
        "roots": lambda: extract_roots(RootSettings(built.out / "entities", "rule")),
    }
    folder = built.out / ("masks" if step == "masks" else "entities")
    stamps = {path: read_lines(path) for path in folder.glob("stamp_*")}
    with one_writer(folder), pytest.raises(ValueError, match=f"^{folder}: another process is writing it"):
        work[step]()
    assert {path: read_lines(path) for path in stamps} == stamps


def test_threads_that_start_together_find_the_same_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textblob reads its word list at the first call."""
    lexicon = en.parser.lexicon
    fresh = en.Lexicon(lexicon._path, lexicon.morphology.path, lexicon.context.path, lexicon.entities.path)
    monkeypatch.setattr(en.parser, "lexicon", fresh)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(rule_root, ["a red boat"] * 32)) == {"boat"}
    finally:
        sys.setswitchinterval(interval)
