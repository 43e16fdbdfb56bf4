"""What the documents and notices say of photographs: exact is the paste-back alone, depth must be given."""

import json
import logging
import re

import pytest

from ldm.experts.depth import NOTICE_FILE, DepthEstimator
from tests import pages
from tests.conftest import ROOT
from tiny.depth.training import NOTICE

NOTICES = [path for path in sorted((ROOT / "assets/tiny").glob("*/*.json")) if path.name != "config.json"]
TEXTS = [ROOT / page for page in pages.PAGES] + [ROOT / "assets/tiny/README.md", *NOTICES]
TEXTS += sorted((ROOT / "configs").rglob("*.yaml"))


def overclaims(text: str) -> list[str]:
    """Sentences that call more than the paste-back exact on photographs."""
    sentences = re.split(r"(?<=[.;])\s|\n\n|\n[|*]|\"", text)
    joined = [" ".join(sentence.split()) for sentence in sentences]
    found = [one for one in joined if re.search(r"photograph", one) and re.search(r"\bexact", one)]
    return [one for one in found if "only the paste-back is exact" not in one.lower()]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Geometry, occlusion and paste-back are\nexact on photographs too.", True),
        ("On photographs the depth is exact.", True),
        ("On photographs only the paste-back is exact: light is rough.", False),
        ("The renderer is exact. Photographs are read.", False),
    ],
)
def test_overclaims_are_noticed(text, wrong):
    assert bool(overclaims(text)) is wrong


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_calls_more_than_the_paste_back_exact_on_photographs(path):
    assert overclaims(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "README.md",
            ["only the paste-back is exact", "from where things stand on the ground", "--background-depth"],
        ),
        (
            "assets/tiny/README.md",
            ["only the paste-back is exact", "0.75", "--background-depth", "--depth-model"],
        ),
        ("assets/tiny/compositor/compositor.json", ["only the paste-back is exact"]),
        ("configs/tiny/compositor.yaml", ["only the paste-back is exact"]),
        ("docs/compositor.md", ["a real network or a depth map is better"]),
        ("docs/locator.md", ["walls are taken for ground", "`--background-depth`"]),
        ("docs/datasets.md", ["else, with a warning, the depth by rules"]),
    ],
)
def test_the_sentences_that_matter_are_there(path, words):
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    assert [word for word in words if word not in text] == []


def test_the_notice_of_the_small_depth_network_is_that_of_its_trainer():
    notice = json.loads((ROOT / "assets/tiny/depth" / NOTICE_FILE).read_text())["notice"]
    assert notice == NOTICE
    assert "hardly better than the image row" in notice
    assert "give a depth map, or a real depth network" in notice


def test_loading_a_depth_network_says_its_notice(small_depth_network, caplog):
    caplog.set_level(logging.INFO)
    DepthEstimator.load(small_depth_network)
    assert [record.getMessage() for record in caplog.records].count(NOTICE) == 1


def test_a_depth_network_of_others_has_no_notice(small_depth_network, tmp_path, caplog):
    for file in small_depth_network.iterdir():
        if file.name != NOTICE_FILE:
            (tmp_path / file.name).symlink_to(file)
    caplog.set_level(logging.INFO)
    DepthEstimator.load(tmp_path)
    assert "photographs" not in caplog.text
