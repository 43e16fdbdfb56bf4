"""Captions and descriptions are continued by the same weights only."""

from dataclasses import replace

import numpy as np
import pytest

from inpainting.data import ops
from inpainting.data.batches import AnnotateSettings, CaptionSettings
from inpainting.data.steps import describe
from inpainting.data.steps.describe import journal_inputs
from ldm.images import write_png
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


@pytest.mark.parametrize("dtype", ["auto", "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("step", ["annotate", "caption", "build"])
def test_the_precision_of_the_model_is_the_users(tmp_path, monkeypatch, step, dtype):
    """The model is loaded in it, and what was begun in one precision is not continued in another."""
    asked = []

    def open_model(*args, **options):
        asked.append(options["dtype"])
        raise ZeroDivisionError

    monkeypatch.setattr(describe, "open_model", open_model)
    entities = tmp_path / "entities/room"
    write_png(tmp_path / "images/room.png", np.zeros((8, 8, 3), np.uint8))
    write_png(entities / "mask_0.png", np.zeros((8, 8, 3), np.uint8))
    (entities / "annotations.json").write_text('{"mask_0": {"concept": "a dog"}}')
    one = {"model_id": "m", "batch_size": 1, "dtype": dtype}
    annotate = AnnotateSettings(tmp_path / "images", tmp_path / "found.json", **one)
    caption = CaptionSettings(entities.parent, output_dir=tmp_path / "captions", **one)
    build = ops.BuildSettings(tmp_path / "images", tmp_path / "found.json", annotator_id="m", dtype=dtype)
    run = {
        "annotate": describe.annotate_images,
        "caption": describe.caption_masks,
        "build": ops.build_paintings,
    }
    settings = {"annotate": annotate, "caption": caption, "build": build}[step]
    with pytest.raises(ZeroDivisionError):
        run[step](settings)
    assert asked == [dtype]
    for given in (annotate, caption):
        assert journal_inputs(given, tmp_path / "j").get("dtype", "auto") == dtype
