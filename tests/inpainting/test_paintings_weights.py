"""Captions and descriptions are continued by the same weights only."""

from dataclasses import replace

import pytest

from inpainting.data.batches import CaptionSettings
from inpainting.data.steps.describe import journal_inputs
from ldm.journal import Journal


def test_the_weights_of_a_local_model_decide_what_is_continued(tmp_path):
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"one")
    settings = CaptionSettings(
        entities_dir=tmp_path, output_dir=tmp_path, model_id=str(tmp_path / "model"), batch_size=1
    )
    path = tmp_path / "j.jsonl"
    Journal(path, journal_inputs(settings, path), keep=True)
    Journal(path, journal_inputs(settings, path), keep=True)
    weights.write_bytes(b"two")
    with pytest.raises(ValueError, match="was begun with weights"):
        Journal(path, journal_inputs(settings, path), keep=True)
    earlier = {"model": settings.model_id, "max_new_tokens": settings.max_new_tokens}
    Journal(tmp_path / "old.jsonl", earlier, keep=True)
    assert journal_inputs(settings, tmp_path / "old.jsonl") == earlier
    elsewhere = replace(settings, model_id="owner/name")
    assert "weights" not in journal_inputs(elsewhere, path)
