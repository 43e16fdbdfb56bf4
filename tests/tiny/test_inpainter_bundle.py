"""The trained inpainter of the bundle on scenes that no training has seen, and the notebook that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from nbclient import NotebookClient
from PIL import Image

from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import load_inpainter
from tiny.inpainter import measures
from tiny.inpainter.examples import PaintCase, make_cases
from tiny.inpainter.measures import paint_examples
from tiny.inpainter.model import load_classifier
from tiny.world import box_masks, read_views

BUNDLE = Path(__file__).parents[2] / "assets" / "tiny" / "inpainter"


def test_notebook_is_stored_without_outputs(root: Path) -> None:
    notebook = nbformat.read(root / "notebooks" / "try_pipe.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_notebook_runs(root: Path) -> None:
    """On the small model, from the folder in which it lies."""
    notebook = nbformat.read(root / "notebooks" / "try_pipe.ipynb", as_version=4)
    run = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(root / "notebooks")}})
    run.execute()
    *_, sheet, drift, dreamed = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert "image/png" in sheet.outputs[-1]["data"]
    assert "image/png" in dreamed.outputs[-1]["data"]
    assert drift.outputs[-1]["data"]["text/plain"] == "[0]"


@pytest.fixture(scope="session")
def held_out_cases(tmp_path_factory: pytest.TempPathFactory) -> list[PaintCase]:
    """Two masks in each of 16 scenes beyond those that the manifest was measured on."""
    folder = tmp_path_factory.mktemp("views") / "held_out"
    render_shards(StoreSettings(out=folder, count=32, first_seed=50_000, split="eval", size=(128, 128),
                                objects=(3, 5), reference_size=(16, 16)))  # fmt: skip
    return make_cases(read_views(folder), "random", 2, 2, seed=0)[:16]


def test_bundle_paints_the_colour_that_each_prompt_names(held_out_cases: list[PaintCase]) -> None:
    pipe = load_inpainter(BUNDLE)
    assert pipe.lora is not None
    examples = [case.example for case in held_out_cases]
    sampling = pipe.config.sampling
    options = PaintOptions(steps=sampling.steps, guidance=sampling.guidance, encoding="separate")
    painted = paint_examples(pipe, examples, range(len(examples)), options, 16)
    records = measures.mask_results(load_classifier(BUNDLE / "judge"), held_out_cases, painted)
    assert len(records) == 32
    assert np.mean([record["colour"] for record in records]) > 0.6  # chance: 1 in 15
    measured = json.loads((BUNDLE / "manifest.json").read_text())["held_out"]
    assert measured["images"]["random"] >= 300


def test_bundle_loads_with_stock_classes() -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(BUNDLE, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(BUNDLE / "plain")
    grey = Image.fromarray(np.full((128, 128, 3), 128, np.uint8))
    mask = Image.fromarray(np.uint8(box_masks([(40, 40, 90, 90)], (128, 128))[0]) * 255)
    result = pipe("a red cube", grey, mask, height=128, width=128, num_inference_steps=2, output_type="np")
    assert result.images[0].shape == (128, 128, 3)
