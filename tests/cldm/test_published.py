"""The published formulation of the benchmark: stored numbers, and those of our networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.published_model import GUIDANCE, PublishedSampler
from cldm.config import CompositorSettings, NetworkConfig
from cldm.convert.convert import convert_compositor
from cldm.create import create_compositor, noise_schedule
from cldm.model import Compositor, load_compositor
from ldm.denoise import Monitor, denoise, set_steps
from ldm.latents import make_scheduler
from tests.cldm.released import checkpoint
from tests.cldm.small import SMALL
from tests.cldm.test_golden_model import REDUCED
from tests.conftest import ROOT


@pytest.fixture
def small() -> Compositor:
    return create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    reference, size = SMALL.reference_size, SMALL.size
    shapes = {"ref": (3, reference, reference), "hint": (4, *size), "depth": (3, *size)}
    return {name: torch.rand(2, *shape, generator=draw) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Compositor:
    """The UNet and the control branches of the golden model; the image encoder is a small one."""
    config = replace(REDUCED, reference_size=28, identity_width=48, identity_heads=4, identity_layers=1)
    folder = tmp_path_factory.mktemp("shipped")
    save_file(checkpoint("bifrost", config), folder / "reduced.safetensors")
    convert_compositor(
        "bifrost", CompositorSettings(folder / "reduced.safetensors", folder / "model"), config
    )
    return load_compositor(folder / "model")[0]


@torch.inference_mode()
def test_shipped_prediction(shipped):
    """The same for one sample; its hints and tokens are stored in half precision."""
    with np.load(ROOT / "tests/fixtures/published_noise.npz") as arrays:
        given = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    hints = given["hint"].float(), given["depth"].float()
    noise = PublishedSampler(shipped).predict(given["x"], given["t"], given["tokens"].float(), hints)
    torch.testing.assert_close(noise, given["noise"], atol=2e-3, rtol=0)
    swapped = PublishedSampler(shipped).predict(given["x"], given["t"] + 100, given["tokens"].float(), hints)
    assert float((swapped - given["noise"]).abs().max()) > 0.05


@torch.inference_mode()
@pytest.mark.parametrize("time", [1, 500, 981])
def test_our_networks_predict_the_same(small, inputs, time):
    conditions = small.conditions(inputs["ref"], inputs["hint"], inputs["depth"])
    x = torch.randn(2, small.latent_space.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = small(x, torch.tensor(time), conditions)
    hints = inputs["hint"], inputs["depth"]
    theirs = PublishedSampler(small).predict(x, torch.tensor([time, time]), conditions.tokens, hints)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_our_sampling_loop_gives_the_same(small, inputs, steps):
    conditions = small.conditions(inputs["ref"], inputs["hint"], inputs["depth"])
    null = small.identity.null(2)
    x = torch.randn(2, small.latent_space.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    both = conditions.with_null(null)
    schedule = set_steps(
        make_scheduler("ddim", noise_schedule(NetworkConfig())), steps, 1.0, torch.device("cpu")
    )
    ours = denoise(
        lambda x, t, guided: small(x, t, both),
        x,
        schedule,
        guidance=GUIDANCE,
        monitor=Monitor(progress=False),
    )
    hints = inputs["hint"], inputs["depth"]
    every = list(PublishedSampler(small).sample(x, conditions.tokens, null, hints, steps))
    assert len(every) == steps
    torch.testing.assert_close(every[-1], ours, atol=1e-3, rtol=1e-3)
