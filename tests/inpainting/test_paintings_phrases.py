"""Objects that Kosmos-2 boxes without naming them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.small_models import write_kosmos
from inpainting.data.steps.describe import describe_paintings, open_model
from tests.ldm.small_mllm import llama_like

BOX = "<object><patch_index_0005><patch_index_0911></object>"
BOXES = BOX.replace(
    "</object>", "</delimiter_of_multi_objects/><patch_index_0001><patch_index_0099></object>"
)
TEXT = (
    "<image> </image><grounding> It shows<phrase> a dog</phrase><object><patch_index_0000><patch_index_0527>"
    f"</object> and<phrase> two men</phrase>{BOXES}."
)
IMAGES = [np.zeros((20, 30, 3), np.uint8)]


def test_objects_without_a_phrase_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = open_model(str(write_kosmos(tmp_path, llama_like())), "full")
    for nameless in (BOX, BOXES, f"<phrase> </phrase>{BOX}"):
        for place in ("<image> </image><grounding>", "</object> and", "</object>."):
            told = TEXT.replace(place, place + nameless)
            monkeypatch.setattr(mllm.processor, "batch_decode", lambda *_, told=told, **__: [told])
            assert list(describe_paintings(mllm, IMAGES, 4)[0]["entities"]) == ["a dog", "two men"]
    monkeypatch.setattr(mllm.processor, "batch_decode", lambda *_, **__: [BOX])
    assert describe_paintings(mllm, IMAGES, 4) == [{"description": "", "entities": {}}]
