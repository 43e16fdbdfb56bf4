"""The steps of the hub's pipelines by themselves: images in and out, seeds, depth, errors."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from compose.hub.pipeline_bifrost import BifrostBlocks, BifrostPipeline, Depth, Fuse, Locate
from compose.hub.shared import as_images, as_loaded, as_mask, first_seed
from tests.compose.test_hub import PLACE, images


def test_images_are_read_from_files_arrays_and_pil_with_their_transparency(tmp_path):
    images(tmp_path)
    item = Image.open(tmp_path / "obj.png")
    for given in (tmp_path / "obj.png", item, np.asarray(item)):
        read = as_loaded(str(given) if isinstance(given, Path) else given)
        assert np.array_equal(read.rgb_u8, np.asarray(item)[..., :3])
        assert np.array_equal(read.alpha_u8, np.asarray(item)[..., 3])
    assert as_loaded(item.convert("L")).alpha_u8 is None
    assert as_loaded(item.convert("P")).rgb_u8.shape == (50, 40, 3)
    (back,) = as_images([as_loaded(item)], "pil")
    assert back.tobytes() == item.tobytes()


def test_masks_are_white_where_set_and_of_the_size_of_their_image(tmp_path):
    images(tmp_path)
    mask = as_mask(str(tmp_path / "m.png"), (60, 80))
    assert mask.sum() == 900
    assert np.array_equal(as_mask(mask, (60, 80)), mask)
    assert np.array_equal(as_mask(mask.astype(np.uint8) * 255, (60, 80)), mask)
    with pytest.raises(ValueError, match=r"a mask is \(80, 60\) pixels, its image \(60, 80\)"):
        as_mask(mask, (80, 60))


def test_a_generator_draws_the_seed_and_goes_on():
    generator = torch.Generator().manual_seed(5)
    drawn = [first_seed(9, generator) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert drawn[0] == first_seed(0, torch.Generator().manual_seed(5))
    assert first_seed(9, None) == 9


def run(block, pipe, **values):
    state = SimpleNamespace(**dict.fromkeys((*block.input_names, "extent")) | values)
    block.run(pipe, state)
    return state


def test_each_block_refuses_what_it_cannot_use(tmp_path):
    images(tmp_path)
    pipe = SimpleNamespace(depth_estimator=None, config=SimpleNamespace(settings={}))
    with pytest.raises(ValueError, match="it is inverted"):
        run(Locate(), pipe, box=(0.6, 0.3, 0.2, 0.8))
    with pytest.raises(ValueError, match="no depth network: give background_depth"):
        run(Depth(), pipe, image="bg.png", box=PLACE["box"])
    photo = str(tmp_path / "bg.png")
    with pytest.raises(ValueError, match="not transparent anywhere: give reference_mask"):
        run(Fuse(), pipe, image=photo, reference=photo)
    with pytest.raises(ValueError, match="unknown argument 'sead'; did you mean 'seed'"):
        BifrostPipeline.__call__(pipe, photo, photo, PLACE["box"], sead=3)


SENTENCE = "Place the cup left of the bowl."


@pytest.mark.parametrize(("given", "told", "depth"), [(None, 0.6, 0.6), (0.2, 0.6, 0.2), (None, None, None)])
def test_a_locator_turns_an_instruction_into_box_and_depth(tmp_path, given, told, depth):
    images(tmp_path)
    seen = []

    def locator(image, instruction):
        seen.append((image.mode, image.size, instruction))
        return [0.2, 0.3, 0.6, 0.8], told

    photo = str(tmp_path / "bg.png")
    state = run(Locate(), None, image=photo, depth=given, instruction=SENTENCE, locator=locator)
    assert seen == [("RGB", (80, 60), SENTENCE)]
    assert (state.box, state.depth) == ((0.2, 0.3, 0.6, 0.8), depth)
    state = run(Locate(), None, image=photo, box=PLACE["box"], depth=given)
    assert (state.box, state.depth) == (PLACE["box"], given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either a box, or an instruction with a locator"),
        ({"instruction": SENTENCE}, "instruction and locator belong together"),
        ({"locator": print}, "instruction and locator belong together"),
        ({"box": PLACE["box"], "instruction": SENTENCE}, "instruction and locator belong together"),
        ({"box": PLACE["box"], "instruction": SENTENCE, "locator": print}, "give either a box"),
        ({"locator": lambda *_: ((0.5, 0, 0.5, 1), None), "instruction": SENTENCE}, "it has no area"),
    ],
)
def test_a_place_is_a_box_or_a_located_sentence(tmp_path, given, message):
    images(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(Locate(), None, image=str(tmp_path / "bg.png"), **given)


@pytest.mark.parametrize(
    ("depth", "extent"), [((0.2, 0.5), (0.2, 0.5)), (0.5, (0.3998, 0.6002)), (None, (0.1998, 0.4002))]
)
def test_depth_is_a_range_a_middle_or_that_of_the_ground(depth, extent):
    flat = np.full((60, 80), 0.3)
    state = run(Depth(), None, box=PLACE["box"], depth=depth, background_depth=flat)
    half, middle = 0.01 + 0.2 * np.sqrt(0.4 * 0.5), 0.3 if depth is None else 0.5
    expected = depth if depth == (0.2, 0.5) else (middle - half, middle + half)
    assert state.extent == pytest.approx(expected)
    assert state.background_depth.dtype == np.float32


def test_blocks_describe_all_that_they_read():
    blocks = BifrostBlocks()
    assert list(blocks.sub_blocks) == ["locate", "depth", "fuse", "paint", "paste"]
    assert sorted(blocks.required_inputs) == ["image", "reference"]
    assert "TODO" not in blocks.doc
    assert {each.name for each in blocks.expected_components} == {
        "unet", "control_detail", "control_depth", "image_encoder", "vae", "scheduler",
        "depth_estimator"}  # fmt: skip
