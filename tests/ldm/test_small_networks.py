"""Which depth network is used, and what is said where a small network meets what it does not know."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cldm.config import CompositorConfig, EvaluateSettings
from cldm.evaluate import run as evaluation
from compose.benchmark import score as scoring
from compose.models import Models
from inpainting import painting
from inpainting.dream import DreamSettings
from ldm import precompute_depth
from ldm.experts.depth import DepthEstimator
from ldm.images import write_png
from ldm.registry import models
from ldm.registry.models import FULL_SIZE, depth_folder, depth_for_photographs, load_registry, warn_of_small
from llava_bifrost.predict import run as prediction
from llava_bifrost.settings import LocatorSettings
from tests.conftest import ROOT

TINY = ROOT / "assets/tiny"
PULLS = {
    "compositor": "pull bifrost-checkpoint, then sh scripts/convert_weight.sh bifrost",
    "depth": "pull depth",
    "inpainter": "pull sd2-inpainting",
    "locator": "pull bifrost-mllm, then python -m llava_bifrost.model convert",
    "prompter": "pull multimask-adapter",
}


class FullNetwork:
    """A network of another kind than those of the bundle."""

    model = np.zeros(1)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with a depth network in it."""
    (tmp_path / "models/depth").mkdir(parents=True)
    (tmp_path / "models/depth/config.json").write_text("{}")
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    return tmp_path / "models/depth"


def test_every_small_network_names_an_entry_of_the_registry() -> None:
    small = {path.parent.name for path in TINY.glob("*/manifest.json")}
    assert small == {*FULL_SIZE, "shadow"}  # no published network expects shadows
    assert set(FULL_SIZE.values()) <= set(load_registry(ROOT / "configs/models.yaml"))


@pytest.mark.parametrize("part", sorted(FULL_SIZE))
@pytest.mark.parametrize("written", ["relative", "whole"])
def test_a_small_network_beside_a_full_one_is_named_with_the_command(
    part: str, written: str, said: pytest.LogCaptureFixture
) -> None:
    small = TINY / part if written == "whole" else Path("assets/tiny") / part
    warn_of_small(Path("models/other"), small)
    (line,) = said.messages
    assert line.startswith(f"{small} is no full-size network")
    assert "meets models/other; get a real one with: python -m ldm.registry " + PULLS[part] in line


@pytest.mark.parametrize(
    ("folders", "photographs", "count"),
    [
        (("assets/tiny/depth", "assets/tiny/compositor"), False, 0),
        (("assets/depth", "assets/tiny/compositor"), False, 0),
        (("assets/depth",), True, 1),
        (("assets/tiny/depth", "assets/tiny/locator"), True, 2),
        (("models/depth", "models/bifrost"), False, 0),
        (("models/depth", "owner/name"), True, 0),
        (("assets/tiny/depth", "assets/tiny/compositor", "owner/name"), False, 2),
        (("elsewhere/tiny/depth", "runs/tiny/compositor"), True, 0),
    ],
)
def test_small_networks_among_themselves_are_no_reason_to_warn(
    folders: tuple[str, ...], photographs: bool, count: int, said: pytest.LogCaptureFixture
) -> None:
    warn_of_small(*map(Path, folders), photographs=photographs)
    assert len(said.messages) == count


def test_the_full_network_is_used_where_it_is_there(full: Path, said: pytest.LogCaptureFixture) -> None:
    assert depth_for_photographs(None) == depth_folder() == full
    assert depth_for_photographs("owner/name") == Path("owner/name")
    assert not said.messages
    small = Path("assets/tiny/depth")
    assert depth_for_photographs(str(small)) == small, "what is asked for is used"
    assert "python -m ldm.registry pull depth" in said.text


def loads(monkeypatch: pytest.MonkeyPatch, module, name: str = "DepthEstimator") -> list[Path]:
    """The folders that a module loads a depth network from."""
    found: list[Path] = []
    fake = SimpleNamespace(load=lambda folder, **_: found.append(Path(folder)) or FullNetwork())
    monkeypatch.setattr(module, name, fake)
    return found


def precomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    write_png(tmp_path / "images/a.png", np.zeros((8, 8, 3), np.uint8))
    found: list[Path] = []

    def load(folder: Path, **_) -> None:
        found.append(Path(folder))
        raise ValueError("enough")

    monkeypatch.setattr(DepthEstimator, "load", load)
    settings = precompute_depth.DepthSettings(images=tmp_path / "images", out=tmp_path / "maps")
    with pytest.raises(ValueError, match="enough"):
        precompute_depth.estimate_tree(settings)
    return found


def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found = loads(monkeypatch, scoring)
    names = ("results", "manifest", "images", "objects")
    scoring.ScoreNetworks(scoring.ScoreSettings(**dict.fromkeys(names, tmp_path)))
    return found


def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Of a compositor that is no small one."""
    found = loads(monkeypatch, evaluation)
    monkeypatch.setattr(evaluation, "read_options", lambda _: None)
    monkeypatch.setattr(evaluation, "shard_files", lambda *_: [tmp_path])
    model = SimpleNamespace(to=lambda device: model)
    monkeypatch.setattr(evaluation, "CompositorPipeline", lambda *_: None)
    monkeypatch.setattr(evaluation, "load_compositor", lambda _: (model, None))
    measurer = evaluation.Measurer(EvaluateSettings(model=tmp_path))
    assert measurer.settings.depth_model == found[0], "the record names it"
    return found


def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    import compose.models

    found = loads(monkeypatch, compose.models)
    cpu = torch.device("cpu")
    networks = Models(tmp_path / "bifrost", depth_folder(), CompositorConfig(), cpu, torch.float32)
    assert isinstance(networks.depth, FullNetwork)
    return found


def predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found = loads(monkeypatch, prediction)
    monkeypatch.setattr(prediction, "load_locator", lambda *_: None)
    anchors = tmp_path / "anchors.json"
    prediction.load_networks(LocatorSettings(locator=str(tmp_path), anchors=anchors))
    return found


USES = [precomputed, scored, evaluated, composed, predicted]


@pytest.mark.parametrize("use", USES)
def test_every_command_picks_the_full_depth_network_without_a_word(
    use, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    assert use(tmp_path, monkeypatch) == [full]
    assert "full-size network" not in said.text


@pytest.mark.parametrize("use", USES)
def test_every_command_warns_of_the_small_depth_network(
    use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    assert use(tmp_path, monkeypatch) == [Path("assets/depth")]
    lines = [line for line in said.messages if "full-size network" in line]
    assert len(lines) == 1
    assert lines[0].startswith("assets/depth is")
    assert lines[0].endswith("get a real one with: python -m ldm.registry pull depth")


@pytest.mark.parametrize("full_part", ["painter", "writer", "none"])
def test_a_full_painter_with_the_small_writer_and_the_other_way_round(
    full_part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(TINY / ("inpainter" if full_part == "painter" else "prompter"), tmp_path / "copy")
    monkeypatch.setattr(painting.PromptWriter, "load", lambda *_: None)
    chosen = {"painter": {"model": copy}, "writer": {"prompter": copy}, "none": {}}[full_part]
    mask = tmp_path / "mask.png"
    settings = DreamSettings(image=tmp_path / "image.png", masks=(mask,), **chosen)
    painting.load_writer(settings)
    expected = {"painter": ["prompter"], "writer": ["inpainter"], "none": []}[full_part]
    assert [Path(line.split(" ")[0]).name for line in said.messages] == expected


def test_a_record_names_the_network_that_made_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "images/a.png", np.zeros((8, 8, 3), np.uint8))
    fake = SimpleNamespace(estimate_many=lambda images, **_: [np.zeros((8, 8), np.float32) for _ in images])
    monkeypatch.setattr(DepthEstimator, "load", lambda *_, **__: fake)
    settings = precompute_depth.DepthSettings(images=tmp_path / "images", out=tmp_path / "maps")
    precompute_depth.estimate_tree(settings)
    record = json.loads((tmp_path / "maps" / precompute_depth.RECORD).read_text())
    assert record["model"] == models.BUILTIN_DEPTH.as_posix()
    precompute_depth.estimate_tree(settings)
