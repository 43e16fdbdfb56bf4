"""Who decodes the result and its previews: the model's autoencoder, or another, such as a tiny one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from cldm.create import create_compositor
from cldm.model import Compositor, save_compositor
from cldm.pipeline import CompositorPipeline
from compose import ComposeSettings, compose, load_models
from compose.commands import write_preview
from compose.pipeline import prepare
from compose.recipe import check_unchanged, settings_of_recipe
from compose.serve.settings import COMPOSE_FIELDS
from compose.settings import CompositeSettings
from ldm.denoise import Step
from ldm.files import ROOT
from ldm.images import read_image
from ldm.latents import LatentSpace
from ldm.result import read_recipe
from tests.cldm.small import SMALL, SMALL_CONFIG

TENT = ROOT / "assets/examples/tent"
JOB: dict[str, Any] = {
    "background": TENT / "room.png", "object": TENT / "object.png", "box": (0.3, 0.2, 0.5, 0.6),
    "background_depth": TENT / "room_depth.png", "device": "cpu", "steps": 2, "detail": 0.0, "init": "noise",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "small"
    save_compositor(create_compositor(SMALL, seed=4), SMALL_CONFIG, place)
    return place


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder of diffusers, as it saves one: without statistics of latents."""
    place = tmp_path_factory.mktemp("models") / "taesd"
    create_compositor(SMALL, seed=9).latent_space.vae.save_pretrained(place)
    return place


def composed(folder: Path, **more: Any) -> Any:
    settings = ComposeSettings(**JOB, model=folder, **more)
    return compose(settings, load_models(settings), progress=False)


def test_another_autoencoder_decodes_the_result_and_only_that(folder: Path, other: Path) -> None:
    usual, tiny = composed(folder), composed(folder, vae=other)
    same = composed(folder, vae=folder / "vae")
    assert np.array_equal(usual.images_u8[0], same.images_u8[0])
    changed = (usual.images_u8[0] != tiny.images_u8[0]).any(axis=-1)
    assert changed.any()
    assert not changed[~tiny.edit_mask].any()
    settings = ComposeSettings(**JOB, model=folder, vae=other)
    models = load_models(settings)
    latents = torch.rand(1, 4, 8, 8)
    expected = LatentSpace(AutoencoderTiny.from_pretrained(other)).eval().decode_u8(latents)
    assert np.array_equal(models.decoder(other).decode_u8(latents), expected)
    assert models.decoder(other) is models.decoder(other)
    assert models.decoder(None) is models.compositor.latent_space
    groups = {prepare(replace(settings, vae=vae), models).group for vae in (None, other, folder / "vae")}
    assert len(groups) == 3  # jobs of a batch that go through the networks together


def test_the_recipe_names_it_and_a_replay_wants_the_same(folder: Path, other: Path, tmp_path: Path) -> None:
    own = shutil.copytree(other, tmp_path / "own")
    result = composed(folder, vae=own)
    result.save(0, tmp_path / "a.png")
    recipe = read_recipe(tmp_path / "a.png")
    assert recipe["settings"]["vae"] == str(own)
    assert recipe["weights"]["vae"]
    settings, recipe = settings_of_recipe(tmp_path / "a.png")
    check_unchanged(tmp_path / "a.png", recipe, settings, load_models(settings))
    again = compose(settings, load_models(settings), progress=False)
    assert np.array_equal(again.images_u8[0], result.images_u8[0])
    create_compositor(SMALL, seed=10).latent_space.vae.save_pretrained(own)
    with pytest.raises(ValueError, match="own is not what the image was made with"):
        check_unchanged(tmp_path / "a.png", recipe, settings, load_models(settings))


@pytest.mark.parametrize("given", [True, False])
def test_previews_are_decoded_by_their_own(folder: Path, other: Path, tmp_path: Path, given: bool) -> None:
    more = {"preview_vae": other} if given else {}
    settings = CompositeSettings(**JOB, model=folder, save_steps=1, out=tmp_path / "a.png", **more)
    models, latents = load_models(settings), torch.rand(1, 4, 8, 8)
    write_preview(settings, models, Step(0, 2, latents))
    space = LatentSpace.from_pretrained(other if given else folder / "vae").eval()
    written = read_image(tmp_path / "a_steps/step_001.png").rgb_u8
    assert np.array_equal(written, space.decode_u8(latents))


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("vae", "preview_vae"):
        with pytest.raises(ValueError, match="nowhere is no folder of an autoencoder: it has no config.json"):
            load_models(ComposeSettings(**JOB, model=folder, **{name: tmp_path / "nowhere"}))
    two: dict[str, Any] = {f"{name}_block_out_channels": (8, 8) for name in ("encoder", "decoder")}
    blocks: dict[str, Any] = {f"num_{name}_blocks": (1, 1) for name in ("encoder", "decoder")}
    AutoencoderTiny(**two, **blocks).save_pretrained(tmp_path / "half")
    wrong = "half: an autoencoder of 4 channels, 2 pixels per latent; the model's has 4 channels, 4 pixels"
    with pytest.raises(ValueError, match=wrong):
        composed(folder, vae=tmp_path / "half")
    assert not {"vae", "preview_vae"} & {*COMPOSE_FIELDS}  # the server's owner chooses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoding_that_overflows_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    model: Compositor = create_compositor(SMALL, seed=4).eval()
    layers = [one for one in model.latent_space.vae.decoder.modules() if isinstance(one, torch.nn.Conv2d)]
    torch.nn.init.constant_(layers[-1].weight, 6e4 if dtype is torch.float16 else 3e38)
    latents = torch.rand(1, 4, 8, 8)
    decode = CompositorPipeline(model).decode
    if dtype is torch.float16:
        assert decode(latents)[0].shape == (32, 32, 3)  # single precision holds these numbers
    with pytest.raises(ValueError, match=r"^the autoencoder \(VAE\) gave NaN or infinite numbers: give --d"):
        CompositorPipeline(model.to(dtype)).decode(latents)


def test_convolutions_lie_channels_last_by_option(folder: Path) -> None:
    images = []
    for channels_last in (False, True):
        settings = ComposeSettings(**JOB, model=folder, channels_last=channels_last)
        models = load_models(settings)
        weight = models.compositor.unet.down_blocks[0].resnets[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        images.append(compose(settings, models, progress=False).images_u8[0])
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
