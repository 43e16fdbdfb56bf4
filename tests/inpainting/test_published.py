"""The published Python interface: same names, same images as painting with the published switches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from inpainting.models import text_to_image
from inpainting.models.text_to_image.config import COMPAT
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import paint
from inpainting.models.text_to_image.published import (
    FreestyleStableDiffusionInpaintPipeline,
    get_freestyle_layout_mask,
    get_freestyle_text_inputs,
)
from ldm.images import to_pm1
from tests.conftest import ROOT
from tests.inpainting.small_inpainter import random_image, small_inpainter, two


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("kl"))


def published_inputs(pipe: Inpainter) -> dict[str, torch.Tensor]:
    masks = [torch.from_numpy(mask)[None].float() for mask, _ in two(64, 64)]
    ids, owners = get_freestyle_text_inputs([prompt for _, prompt in two(64, 64)], pipe.tokenizer)
    return {
        "input_ids": ids[None],
        "freestyle_attention_mask": owners[None],
        "freestyle_layout_mask": get_freestyle_layout_mask(masks)[None],
        "image": to_pm1(random_image(64, 64))[None],
        "mask_image": torch.cat(masks).amax(0)[None, None],
    }


def test_published_call_paints_what_compat_paints(pipe):
    old = FreestyleStableDiffusionInpaintPipeline(**vars(pipe))
    output = old(**published_inputs(old), num_inference_steps=2, num_images_per_prompt=2,
                 generator=torch.Generator().manual_seed(1), output_type="np")  # fmt: skip
    assert len(output.images) == len(output.seeds) == 2
    again = old(**published_inputs(old), num_inference_steps=2,
                generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert again.seeds == output.seeds[:1]
    assert np.abs(np.array(again.images[0], int) - output.images[0]).max() <= 1
    for seed, image in zip(output.seeds, output.images, strict=True):
        options = replace(COMPAT, steps=2)
        ours = paint(random_image(64, 64), two(64, 64), old, seed, options, progress=False)
        assert np.abs(ours.image_u8.astype(int) - image).max() <= 1
        assert ours.report["drift"][0]["changed_outside"] > 0, "the whole decoded image, as published"


def test_published_call_takes_pil_images_and_names_what_does_not_fit(pipe):
    old = FreestyleStableDiffusionInpaintPipeline(**vars(pipe))
    given = published_inputs(old)
    union = Image.fromarray((given["mask_image"][0, 0].numpy() * 255).astype(np.uint8))
    images = {"image": Image.fromarray(random_image(50, 90)), "mask_image": union}
    output = old(**{**given, **images}, num_inference_steps=1)
    assert output.images[0].size == (64, 64)
    for changed, message in (
        ({"image": given["image"].repeat(2, 1, 1, 1)}, "1 token sequences for 2 images"),
        ({"image": given["image"][..., :60], "mask_image": given["mask_image"][..., :60]}, "multiples of 8"),
        ({"image": given["image"][..., :56]}, "differ in size"),
        ({"output_type": "latent"}, "allowed: pil, np"),
    ):
        with pytest.raises(ValueError, match=message):
            old(**{**given, **changed}, num_inference_steps=1)


def test_published_layout():
    masks = [torch.zeros(1, 6, 6) for _ in range(2)]
    masks[0][:, :3, :3], masks[1][:, 2:5, 2:5] = 255, 1
    layout = get_freestyle_layout_mask(masks)
    assert layout.shape == (6, 6, 6)
    assert layout[0].all()
    assert not layout[3:].any()
    assert layout[:3, 5, 5].tolist() == [1, 1, 1]
    assert layout[:3, 0, 0].tolist() == [1, 1, 0]
    assert layout[:3, 2, 2].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="at most 1 masks needs at least one, got 2"):
        get_freestyle_layout_mask(masks, max_concepts=1)


def test_the_package_itself_loads_no_network_library():
    code = "import inpainting.models.text_to_image as t, sys; assert 'torch' not in sys.modules; t.PUBLISHED"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert all(callable(getattr(text_to_image, name)) for name in text_to_image.PUBLISHED)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = text_to_image.absent
