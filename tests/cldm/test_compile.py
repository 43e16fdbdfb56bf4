"""The compositor's transformer blocks by torch.compile: the same image, and what is refused."""

import re
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from cldm.config import SPEEDS, Sampling
from cldm.create import create_compositor
from cldm.graphs import check_compile, compile_blocks
from cldm.model import Compositor, save_compositor
from cldm.pipeline import CompositorPipeline
from compose import ComposeSettings, compose, load_models
from compose.painters import at_once
from datasets.pairs import Pair
from ldm.denoise import Monitor
from ldm.files import ROOT
from ldm.result import read_recipe
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_pipeline import pair  # noqa: F401  (a fixture)

CPU = torch.device("cpu")
TENT = ROOT / "assets/examples/tent"
JOB: dict[str, Any] = {
    "background": TENT / "room.png", "object": TENT / "object.png", "box": (0.3, 0.2, 0.5, 0.6),
    "background_depth": TENT / "room_depth.png", "device": "cpu", "init": "noise", "guidance": 1.0,
}  # fmt: skip


def compiled(model: Compositor) -> list[BasicTransformerBlock]:
    """The blocks that torch compiles."""
    blocks = [part for part in model.modules() if isinstance(part, BasicTransformerBlock)]
    return [block for block in blocks if block._compiled_call_impl is not None]


def test_where_it_cannot_compile_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_compile(CPU)
    with pytest.raises(ValueError, match="^--engine compile works on a CPU and with CUDA, not on mps: add"):
        check_compile(torch.device("mps"))
    settings = ComposeSettings(**JOB, engine="compile")
    no_compiler = r"^--engine compile: no C\+\+ compiler was found; apt install g\+\+, or name one in CXX$"
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "g++"))}):
        check = pytest.raises(ValueError, load_models, settings)
    assert re.match(no_compiler, str(check.value))
    path, here = sysconfig.get_path, str(tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: here if name == "include" else path(name))
    with pytest.raises(ValueError, match=f"^--engine compile: {here} has no Python.h; apt install python3"):
        load_models(settings)


def test_the_engine_decides_whether_the_blocks_are_compiled_and_together_is_left_alone() -> None:
    usual, models = (load_models(ComposeSettings(**JOB, engine=name)) for name in ("torch", "compile"))
    assert not compiled(usual.compositor)
    assert len(compiled(models.compositor)) == len(
        [part for part in usual.compositor.modules() if isinstance(part, BasicTransformerBlock)]
    )
    assert at_once(usual) > at_once(models) == 1  # an image would not be that of the job alone, to the bit


@pytest.mark.slow
def test_an_image_is_that_of_torch_up_to_rounding(pair: Pair) -> None:  # noqa: F811
    """In bfloat16, where attention goes block by block, with steps that reuse deep features."""
    model = create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval().to(torch.bfloat16)
    sampling, monitor = Sampling("ddim", steps=8, guidance=1.0, **SPEEDS["fast"]), Monitor(progress=False)
    expected = CompositorPipeline(model).paint(pair, [5], sampling, monitor=monitor)[0].astype(int)
    counted = torch._dynamo.utils.counters
    counted.clear()
    compile_blocks(model.unet, model.detail, model.depth)
    found = CompositorPipeline(model).paint(pair, [5], sampling, monitor=monitor)[0]
    assert np.abs(found - expected).max() <= 4
    assert counted["stats"]["unique_graphs"] >= 2  # of the two sizes of its blocks
    assert not counted["graph_break"]


@pytest.mark.slow
def test_a_composite_says_that_it_was_compiled_and_replays(tmp_path: Path) -> None:
    model, images = create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4), []
    save_compositor(model, SMALL_CONFIG, tmp_path / "m")
    for engine in ("torch", "compile", "compile"):
        settings = ComposeSettings(**JOB, model=tmp_path / "m", steps=3, engine=engine)
        result = compose(settings, load_models(settings), progress=False)
        images.append(result.images_u8[0].astype(int))
    result.save(0, tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png")["settings"]["engine"] == "compile"
    assert np.array_equal(images[1], images[2])
    assert np.abs(images[0] - images[1]).max() <= 1
