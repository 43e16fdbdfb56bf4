"""Guidance and deep features taken from other steps, with regions: what runs, and what stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from inpainting.models.text_to_image.load import Inpainter, load_inpainter
from inpainting.models.text_to_image.pipeline import paint
from inpainting.models.text_to_image.rca import install_rca, region_kwargs
from ldm import device
from ldm.reuse import LAST_FULL, DeepReuse, predict_in_parts
from ldm.settings.choices import UNET_SPEEDS
from tests.inpainting.small_inpainter import (
    QUICK,
    random_image,
    save_inpainter,
    small_inpainter,
    small_unet,
    two,
)

IMAGE, REGIONS = random_image(64, 64), two(64, 64)
GIVEN = replace(QUICK, steps=8)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("kl"))


@pytest.fixture
def calls(pipe: Inpainter) -> Iterator[Counter[str]]:
    """How often the first and the mid block ran, and on how many rows."""
    seen: Counter[str] = Counter()

    def count(name: str):
        def hook(module, args, options, output):
            first = args[0] if args else options["hidden_states"]
            seen.update({name: 1, f"{name} rows": len(first)})

        return hook

    blocks = {"first": pipe.unet.conv_in, "mid": pipe.unet.mid_block}
    hooks = [block.register_forward_hook(count(name), with_kwargs=True) for name, block in blocks.items()]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7)])
def test_the_parts_are_the_whole_with_regions(layers: int, size: tuple[int, int]) -> None:
    unet, generator = install_rca(small_unet()), torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 9, *size, generator=generator), torch.randn(2, 6, 16, generator=generator)
    masks = torch.zeros(2, 2, 8 * size[0], 8 * size[1], dtype=torch.bool)
    masks[:, 0, :20, :20], masks[:, 1, 20:] = True, True
    ids = torch.tensor([[0, 1, 1, 2, 2, 0]] * 2)
    given = {"cross_attention_kwargs": region_kwargs(masks, ids, size, levels=3)}
    t = torch.tensor(500)
    with torch.inference_mode():
        whole = unet(x, t, encoder_hidden_states=tokens, **given).sample
        plain = unet(x, t, encoder_hidden_states=tokens).sample
        parts, entering = predict_in_parts(unet, x, t, tokens, (), None, **given)
        deep = entering[-min(layers, len(entering))]
        again, none = predict_in_parts(unet, x, t, tokens, (), deep, layers, **given)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(again, whole, atol=1e-5)
    assert not none
    assert not torch.allclose(plain, whole, atol=1e-3)


def test_every_speed_runs_less_and_nothing_moves_outside(pipe: Inpainter, calls: Counter[str]) -> None:
    found = {}
    for speed in UNET_SPEEDS:
        calls.clear()
        result = paint(IMAGE, REGIONS, pipe, 3, replace(GIVEN, speed=speed), progress=False)
        found[speed] = dict(calls)
        assert result.recipe["options"]["speed"] == speed
        assert not any(drift["changed_outside"] for drift in result.report["drift"])
    assert found["exact"] == {"first": 8, "first rows": 16, "mid": 8, "mid rows": 16}
    # Halves at steps 0, 2, 4, 6; whole at 0, 2, 4 and the last three.
    assert found["balanced"] == {"first": 8, "first rows": 12, "mid": 3 + LAST_FULL, "mid rows": 6 + 4}
    # Halves at 0 and 6; whole at 0, 3 and the last three.
    assert found["fast"] == {"first": 8, "first rows": 10, "mid": 2 + LAST_FULL, "mid rows": 3 + 4}


@pytest.mark.parametrize(
    ("interval", "rows"), [((0.0, 1.0), 16), ((0.0, 0.5), 12), ((0.4, 0.8), 11), ((0, 0), 8)]
)
def test_guidance_acts_in_its_interval_only(
    pipe: Inpainter, calls: Counter[str], interval: tuple[float, float], rows: int
) -> None:
    result = paint(IMAGE, REGIONS, pipe, 3, replace(GIVEN, guidance_interval=interval), progress=False)
    assert calls["first rows"] == rows
    without = paint(IMAGE, REGIONS, pipe, 3, replace(GIVEN, guidance=1.0), progress=False)
    assert np.array_equal(result.image_u8, without.image_u8) == (rows == 8)


@pytest.mark.parametrize(
    "more", [{"join_from": 0.5}, {"rca": False}, {"guidance": 1.0}, {"strength": 0.5}], ids=str
)
def test_speeds_go_with_the_other_options(pipe: Inpainter, more: dict[str, object]) -> None:
    options = replace(GIVEN, **more)
    plain = paint(IMAGE, REGIONS, pipe, 4, options, progress=False).image_u8
    for speed in ("balanced", "fast"):
        chosen = replace(options, speed=speed)
        both = paint(IMAGE, REGIONS, pipe, 3, chosen, samples=2, progress=False)
        assert not np.array_equal(plain, both.images_u8[1])
        alone = paint(IMAGE, REGIONS, pipe, 4, chosen, progress=False).image_u8
        assert np.abs(both.images_u8[1].astype(int) - alone).max() <= 1


def test_few_steps_are_all_computed(pipe: Inpainter, calls: Counter[str]) -> None:
    unet = DeepReuse(pipe.unet, LAST_FULL, every=2)
    for _ in range(LAST_FULL):
        unet(torch.zeros(1, 9, 8, 8), torch.tensor(5), torch.zeros(1, 3, 16))
    assert calls["mid"] == LAST_FULL


def test_swapped_processors_stop_a_quick_run(tmp_path: Path) -> None:
    pipe = small_inpainter(tmp_path)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match="switched off"):
        paint(IMAGE, REGIONS, pipe, 0, replace(GIVEN, speed="fast"), progress=False)


@pytest.mark.parametrize(("dtype", "faster"), [("fp32", False), ("fp16", False), ("bf16", True)])
def test_half_precision_on_a_cpu_takes_the_faster_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, faster: bool
) -> None:
    """Weights of convolutions lie channels-last, self-attention runs in blocks."""
    save_inpainter(small_inpainter(tmp_path / "a"), tmp_path / "model")
    pipe, seen = load_inpainter(tmp_path / "model", device="cpu", dtype=dtype), []
    weight = pipe.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == faster
    monkeypatch.setattr(device, "suits", lambda *given, **more: seen.append(given[0].dtype))
    paint(IMAGE, REGIONS, pipe, 3, QUICK, progress=False)
    assert {*seen} == {pipe.dtype}
