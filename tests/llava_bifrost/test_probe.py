"""Probing a locator of unknown training: format, decimals, template, tokens, whether it looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.relations import Place
from ldm.images import write_png
from ldm.mllm.model import Mllm
from ldm.mllm.templates import TEMPLATES
from ldm.settings.cli import run_app
from llava_bifrost import probing
from llava_bifrost.language.answer import Candidate, parse_answer
from llava_bifrost.locator import Locator, LocatorConfig
from llava_bifrost.probe import build_app
from llava_bifrost.probing import probe_locator, token_parity
from llava_bifrost.settings import ProbeSettings
from tests.ldm.small_mllm import build_small, small_folder

C, M = "[0.{d}, 0.{d}, 0.9{z}, 0.9{z}], 0.5{z}.", "[0.{d}, 0.{d}, 0.9{z}, 0.9{z}], 0.7{z}, 0.5{z}, 0.3{z}."


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(5):
        image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        write_png(tmp_path / "photos" / "below" / f"{number}.png", image)
    return tmp_path / "photos"


class Scripted(Locator):
    """Answers in one format, with one template and number of decimals, and looks or does not."""

    format, template, zeros, looks = "maxmedmin", "vicuna_v1", "0", True

    def _said(self, image_u8: np.ndarray) -> str:
        digit = int(image_u8.sum()) % 8 + 1 if self.looks else 1
        shape = M if self.format == "maxmedmin" else C
        return shape.format(d=f"{digit}{self.zeros}", z=self.zeros)

    def answer_freely(self, images_u8: Any, questions: Any, batch: int = 8) -> list[tuple[str, Place | None]]:
        trained = self.config.template == self.template and "point." not in questions[0] * (
            self.format == "maxmedmin"
        )
        said = [self._said(image) if trained else "a dog on a sofa" for image in images_u8]
        return [(text, parse_answer(text) if trained else None) for text in said]

    def answer(self, images_u8: Any, questions: Any) -> list[Candidate]:
        said = [self._said(image) for image in images_u8]
        return [Candidate(parse_answer(text), 0.0, text) for text in said]


def scripted(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    kind = type("Asked", (Scripted,), changes)
    model, processor = build_small("llava")
    monkeypatch.setattr(probing, "Locator", kind)
    monkeypatch.setattr(
        probing, "load_locator", lambda *given: kind(Mllm(model, processor, Path()), LocatorConfig())
    )


@pytest.mark.parametrize(
    ("changes", "suits"),
    [
        ({}, {"template": "vicuna_v1", "format": "maxmedmin", "decimals": 2}),
        ({"zeros": "00"}, {"template": "vicuna_v1", "format": "maxmedmin", "decimals": 3}),
        ({"format": "center", "template": "llava_v1", "zeros": "00"},
         {"template": "llava_v1", "format": "center", "decimals": 3}),
        ({"format": "center", "template": None}, {"template": None, "format": "center", "decimals": 2}),
    ],
)  # fmt: skip
def test_what_suits_is_found(
    changes: dict,
    suits: dict,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    scripted(monkeypatch, **changes)
    report = probe_locator(ProbeSettings(folder=Path("released"), images=photographs))
    assert report["suits"] == suits
    assert (report["parsed"], report["images"], report["blind"]) == (1.0, 5, False)
    differs = report["configured"] != suits
    assert ("locator.json says otherwise" in caplog.text) == differs


def test_a_locator_that_does_not_look_is_called_blind(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    scripted(monkeypatch, looks=False)
    report = probe_locator(
        ProbeSettings(folder=Path("released"), images=photographs, sentences=("Place the cat",))
    )
    assert report["blind"]
    assert report["same_answer_about_another_image"] == 1
    assert "100 % of the answers are the same about another image" in caplog.text


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_words"])
def test_the_command_on_random_weights(
    family: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probing, "TEMPLATES", {"vicuna_v1": TEMPLATES["vicuna_v1"]})
    folder, out = small_folder(family, tmp_path / "model"), tmp_path / "report.json"
    (folder / "locator.json").write_text('{"decimals": 2}')
    line = [str(folder), "--images", str(photographs), "--count", "2", "--device", "cpu", "--out", str(out)]
    assert run_app(build_app, line) == 0
    report = json.loads(out.read_text())
    assert report["images"] == 2
    assert report["parsed"] <= 1
    assert isinstance(report["token_parity"], bool) == family.startswith("llava")
    assert len(report["asked"]) == (4 if family.startswith("llava") else 2)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_tokens_that_a_processor_lost_are_seen(family: str, monkeypatch: pytest.MonkeyPatch):
    """Of a LLaMA tokenizer: the blank between the image and the line break."""
    model, processor = build_small(family)
    locator = Locator(Mllm(model, processor, Path()), LocatorConfig(template="vicuna_v1"))
    whole, order = locator.chat.prompts, "Place the dog behind the sofa"

    def shortened(asks: Any) -> dict[str, Any]:
        ids = whole(asks)["input_ids"]
        last = int((ids[0] == processor.image_token_id).nonzero()[-1])
        assert processor.tokenizer.convert_ids_to_tokens(ids[0, last + 1 : last + 3]) == ["\u2581", "<0x0A>"]
        return {"input_ids": torch.cat([ids[:, : last + 1], ids[:, last + 2 :]], dim=1)}

    assert token_parity(locator, order) is True
    monkeypatch.setattr(locator.chat, "prompts", shortened)
    assert token_parity(locator, order) is False


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = small_folder("llava", tmp_path / "model")
    (tmp_path / "empty").mkdir()
    assert run_app(build_app, [str(folder), "--images", str(tmp_path / "empty")]) == 2
    assert "holds 0 images, at least 2 are needed" in capsys.readouterr().err
    assert run_app(build_app, [str(tmp_path / "nowhere")]) == 2
    assert "no locator there" in capsys.readouterr().err
