"""A sentence in the place of the box: who reads it, what is recorded, and that a replay asks nobody."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compose import ComposeSettings, compose, load_models
from compose.models import Models
from compose.settings import CompositeSettings
from datasets.relations import Place
from ldm.images import read_depth, read_image
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from llava_bifrost import settings as locator_settings
from llava_bifrost.language.answer import Candidate, satisfies
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.propose import read_anchors
from llava_bifrost.settings import GEOMETRIC
from run_inference import build_app
from tests.images import Case, room
from tests.ldm import small_detectors

SENTENCE = "Place the thing to the left of the crate"
CRATE = {"crate": {"box": [0.68, 0.45, 0.88, 0.8], "depth": 0.64}}
HERE, HIDDEN = (0.4, 0.3, 0.6, 0.9), (0.02, 0.3, 0.2, 0.8)


class FakeLocator:
    """Answers with fixed places and notes what it was asked."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes, self.asked = boxes, []

    def locate(self, rgb_u8, instruction, candidates=1, seed=0, *, depth_01=None, anchors=None):
        self.asked.append((instruction, candidates, seed, depth_01.shape, anchors))
        return [
            Candidate(Place.of(box, 0.6 - 0.1 * index), -1.5 - index, f"answer {index}", 0.9)
            for index, box in enumerate(self.boxes[:candidates])
        ]


@pytest.fixture
def anchors(case: Case) -> Path:
    path = case.folder / "anchors.json"
    path.write_text(json.dumps(CRATE))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A locator folder as far as hashing looks at it."""
    made = tmp_path / "locator"
    made.mkdir()
    for name in ("config.json", "locator.json", "model.safetensors"):
        (made / name).write_text("{}")
    return made


def use(monkeypatch: pytest.MonkeyPatch, locator: FakeLocator) -> None:
    monkeypatch.setattr(Models, "locator", lambda self, folder: locator)


def test_one_call_from_sentence_to_image(case: Case, anchors: Path) -> None:
    flags = ["--instruction", SENTENCE, "--anchors", anchors, "--candidates", "3", "--sheet"]
    assert case.run(*flags, without=["--box", "--depth"]) == 0
    case.unchanged_outside(room())
    report, recipe = case.report(), read_recipe(case.out)
    placement = report["placement"]
    assert placement == recipe["placement"]
    assert placement["instruction"] == SENTENCE
    assert placement["locator"]["folder"] == GEOMETRIC
    assert placement["satisfied"] == {"to the left of the crate": True}
    assert 1 <= len(placement["candidates"]) <= 3
    chosen = placement["candidates"][placement["chosen"]]
    assert report["box"] == chosen["box"] == recipe["settings"]["box"]
    assert recipe["settings"]["depth"] == [chosen["depth"]]
    assert recipe["settings"]["instruction"] is None
    assert report["depth"]["source"] == "instruction"
    assert report["depth"]["far"] < chosen["depth"] < report["depth"]["near"]
    assert (report["box"][0] + report["box"][2]) / 2 < 0.68
    assert "locate" in report["seconds"]
    assert case.out.with_name("a_sheet.png").is_file()


def test_replay_gives_the_same_bytes_without_locator_or_anchors(case: Case, anchors: Path) -> None:
    flags = ["--instruction", SENTENCE, "--anchors", anchors]
    assert case.run(*flags, without=["--box", "--depth"]) == 0
    anchors.unlink()
    again = case.folder / "again.png"
    assert run_app(build_app, ["replay", str(case.out), "--out", str(again)]) == 0
    assert again.read_bytes() == case.out.read_bytes()
    assert case.report(again)["placement"] == case.report()["placement"]


def test_a_language_model_is_asked_once_and_recorded(case: Case, folder: Path, monkeypatch) -> None:
    locator = FakeLocator(HERE, (0.45, 0.3, 0.7, 0.9))
    use(monkeypatch, locator)
    flags = ["--instruction", SENTENCE, "--locator", folder, "--candidates", "2", "--seed", "7"]
    assert case.run(*flags, without=["--box", "--depth"]) == 0
    assert locator.asked == [(SENTENCE, 2, 7, (96, 128), None)]
    placement = case.report()["placement"]
    assert [one["log_probability"] for one in placement["candidates"]] == [-1.5, -2.5]
    assert [one["text"] for one in placement["candidates"]] == ["answer 0", "answer 1"]
    assert placement["locator"]["folder"] == folder.as_posix()
    assert set(placement["locator"]["weights"]) == {"model.safetensors", "locator.json"}
    assert case.report()["box"] == list(HERE)
    image = read_image(case.out).rgb_u8
    assert run_app(build_app, ["replay", str(case.out)]) == 0
    assert len(locator.asked) == 1
    assert np.array_equal(read_image(case.out.with_name("a_replay.png")).rgb_u8, image)


def test_the_first_place_at_which_the_object_shows_is_used(case: Case, folder: Path, monkeypatch) -> None:
    """The post at the left is nearer than everything: an object behind it is hidden."""
    use(monkeypatch, FakeLocator(HIDDEN, HERE))
    flags = ["--instruction", SENTENCE, "--locator", folder]
    assert case.run(*flags, "--candidates", "2", without=["--box", "--depth"]) == 0
    assert case.report()["placement"]["chosen"] == 1
    assert case.report()["box"] == list(HERE)
    assert case.run(*flags, without=["--box", "--depth"]) == 2


def test_known_things_go_to_the_model_and_what_it_breaks_is_said(
    case: Case, anchors: Path, folder: Path, monkeypatch, caplog
) -> None:
    locator = FakeLocator((0.7, 0.3, 0.95, 0.9))
    use(monkeypatch, locator)
    flags = ["--instruction", SENTENCE, "--anchors", anchors, "--locator", folder]
    assert case.run(*flags, without=["--box", "--depth"]) == 0
    assert set(locator.asked[0][4]) == {"crate"}
    assert "this place is not to the left of the crate" in caplog.text
    assert case.report()["placement"]["satisfied"] == {"to the left of the crate": False}


def test_replace_takes_the_thing_and_changes_the_mode(case: Case, anchors: Path) -> None:
    flags = ["--instruction", "Replace the crate", "--anchors", anchors]
    assert case.run(*flags, without=["--box", "--depth"]) == 0
    report = case.report()
    assert (report["mode"], report["box"]) == ("replace", CRATE["crate"]["box"])


def test_a_detector_finds_what_is_named(case: Case, tmp_path: Path) -> None:
    """The untrained one finds something; its box and the depth there are recorded."""
    detector = small_detectors.owlv2(tmp_path / "detector")
    settings = ComposeSettings(
        background=case.folder / "room.png", background_depth=case.folder / "depth.png",
        object=case.folder / "thing.png", object_mask=case.folder / "mask.png", model=case.model,
        instruction="Replace the lamp", detector=detector,
    )  # fmt: skip
    assert settings.locator_name == GEOMETRIC
    placement = compose(settings, load_models(settings), progress=False).report["placement"]
    assert set(placement["anchors"]) == {"lamp"}
    assert placement["locator"]["detector"] == detector.as_posix()


def test_which_locator_reads_the_sentence(case: Case, anchors: Path, monkeypatch, tmp_path: Path) -> None:
    full = tmp_path / "full"
    monkeypatch.setattr(locator_settings, "FULL", full)
    given = {"background": case.folder / "room.png", "object": case.folder / "thing.png"}
    plain = ComposeSettings(**given, instruction=SENTENCE)
    assert plain.locator_name == "assets/tiny/locator"
    assert ComposeSettings(**given, instruction=SENTENCE, anchors=anchors).locator_name == GEOMETRIC
    full.mkdir()
    (full / "config.json").write_text("{}")
    assert plain.locator_name == full.as_posix()
    assert ComposeSettings(**given, instruction=SENTENCE, locator="geometric").locator_name == GEOMETRIC


def test_the_small_locator_reads_the_demo(case: Case, root: Path, monkeypatch) -> None:
    """The one that comes with the code, without anchors; its answer satisfies the sentence."""
    monkeypatch.chdir(root)
    demo = load_config(CompositeSettings, root / "configs/demo.yaml")
    settings = replace(demo, model=case.model, candidates=2, out=case.out)
    assert settings.locator_name == "assets/tiny/locator"
    models = load_models(settings)
    placement = compose(settings, models, progress=False).report["placement"]
    assert len(placement["candidates"]) == 2
    assert all(one["log_probability"] < 0 for one in placement["candidates"])
    depth_01 = read_depth(demo.background.with_name("room_depth.png"))
    known = read_anchors(demo.background.with_name("anchors.json"), depth_01)
    best = models.locator(Path("assets/tiny/locator")).locate(
        read_image(settings.background).rgb_u8, settings.instruction
    )[0]
    assert all(satisfies(best.location, parse_instruction(settings.instruction), known).values())
    with pytest.raises(ValueError, match="(?s)'walrus'.*prism.*--locator geometric"):
        compose(replace(settings, instruction="Place the walrus behind the prism"), models, progress=False)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--box", "0.1,0.1,0.2,0.2"], "--instruction and --box both say where"),
        (["--target-mask", "target.png"], "--instruction and --target-mask both say where"),
        (["--instruction", "", "--locator", "geometric"], "the instruction is empty"),
        (["--instruction", "Place the dog", "--locator", "geometric"], "no known relation in 'the dog'"),
        (
            ["--locator", "geometric"],
            "needs to know where the crate is: give --detector FOLDER",
        ),
        (["--anchors", "none.json"], "none.json"),
        (["--detector", "nowhere"], "detector nowhere: no such folder"),
        (["--locator", "nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_line(case: Case, capsys, flags: list[str], reason: str) -> None:
    before = case.files()
    assert case.run("--instruction", SENTENCE, *flags, without=["--box", "--depth"]) == 2
    shown = capsys.readouterr().err
    assert reason in shown
    assert shown.count("\n") == 1
    assert case.files() == before


def test_anchors_without_the_named_thing_say_what_they_hold(case: Case, anchors: Path, capsys) -> None:
    flags = ["--instruction", "Place the dog behind the bed", "--anchors", anchors]
    assert case.run(*flags, without=["--box", "--depth"]) == 2
    assert (
        "knows crate, and needs to know where the bed is: give --detector FOLDER" in capsys.readouterr().err
    )


def test_what_only_a_sentence_uses_is_named_without_one(case: Case, anchors: Path, caplog) -> None:
    assert case.run("--anchors", anchors, "--candidates", "3") == 0
    assert "--anchors has no effect without --instruction" in caplog.text
    assert "--candidates has no effect without --instruction" in caplog.text


def test_the_depth_network_serves_the_locator_too(case: Case) -> None:
    path = case.folder / "anchors.json"
    path.write_text(json.dumps({"crate": {"box": CRATE["crate"]["box"]}}))
    flags = ["--instruction", "Replace the crate", "--anchors", path, "--depth-model", case.depth_model]
    assert case.run(*flags, without=["--box", "--depth", "--background-depth"]) == 0
    assert set(read_recipe(case.out)["weights"]) == {"model", "depth_model"}
