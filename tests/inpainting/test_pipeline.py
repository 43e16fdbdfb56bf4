"""Painting regions: images of any size, nothing moves outside the masks, samples are independent."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from inpainting.models.text_to_image.config import COMPAT, InpainterConfig, PaintOptions, Recommended
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import (
    PaintJob,
    RegionPrompt,
    make_canvas,
    paint,
    paint_all,
    pair_masks,
    resolve_options,
)
from ldm.denoise import Cancelled, Monitor
from ldm.latents import make_scheduler
from tests.inpainting.small_inpainter import QUICK, box, random_image, small_inpainter, two


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    """Another autoencoder, statistics per channel, and a card of its own."""
    card = InpainterConfig("tiny", encoding="separate", sampling=Recommended("euler", steps=2, guidance=2.0))
    return small_inpainter(tmp_path_factory.mktemp("tiny"), "tiny", card)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (61, 200), (150, 90), (300, 60)])
def test_images_of_any_size_keep_every_byte_outside_the_masks(tiny, size):
    before = random_image(*size)
    result = paint(before, two(*size), tiny, seed=3, progress=False)
    outside = ~(two(*size)[0][0] | two(*size)[1][0])
    assert result.image_u8.shape == before.shape
    assert np.array_equal(result.image_u8[outside], before[outside])
    assert not np.array_equal(result.image_u8, before)
    drift = result.report["drift"][0]
    assert (drift["changed_outside"], drift["max_abs_outside"]) == (0, 0)
    assert drift["edit_fraction"] == pytest.approx(1 - outside.mean())


def test_sizes_of_the_canvas():
    for size, inner in (((64, 64), (64, 64)), ((75, 100), (64, 85)), ((300, 100), (128, 43))):
        assert make_canvas(random_image(*size), [np.ones(size, bool)], 64, 8)[2] == inner
    image_pm1, masks, inner = make_canvas(random_image(30, 41), [box(30, 41, 0, 1, 0.9, 1)], 64, 8)
    assert inner == (64, 87)
    assert masks.shape[1:] == (64, 88)
    assert not masks[0, :, 87:].any(), "what is added at the edge belongs to no region"
    assert torch.equal(image_pm1[:, :, 87], image_pm1[:, :, 86])


def test_a_mask_of_one_pixel_survives_shrinking():
    mask = np.zeros((1000, 1000), bool)
    mask[501, 333] = True
    assert make_canvas(random_image(1000, 1000), [mask], 64, 8)[1].sum() >= 1


def test_a_sample_is_the_same_alone_and_in_company(pipe):
    jobs = [
        PaintJob(random_image(64, 64, 1), two(64, 64), (5, 6)),
        PaintJob(random_image(64, 80, 2), two(64, 80)[:1], (7,)),
        PaintJob(random_image(64, 64, 3), [*two(64, 64), (box(64, 64, 0, 0.2, 0.7, 1), "a cone")], (8,)),
    ]
    together = paint_all(jobs, pipe, QUICK, Monitor(progress=False))
    assert [result.seeds for result in together] == [[5, 6], [7], [8]]
    for job, result in zip(jobs, together, strict=True):
        for seed, image in zip(job.seeds, result.images_u8, strict=True):
            alone = paint(job.image_u8, job.regions, pipe, seed, QUICK, progress=False).image_u8
            assert np.abs(alone.astype(int) - image).max() <= 1
    assert not np.array_equal(*together[0].images_u8)


def test_equal_calls_give_equal_bytes_and_samples_count_up(pipe):
    first = paint(random_image(64, 64), two(64, 64), pipe, 4, QUICK, samples=2, progress=False)
    again = paint(random_image(64, 64), two(64, 64), pipe, 4, QUICK, samples=2, progress=False)
    assert first.seeds == [4, 5]
    assert all(np.array_equal(*each) for each in zip(first.images_u8, again.images_u8, strict=True))
    assert first.recipe == again.recipe


def test_one_region_equals_the_stock_pipeline(tmp_path):
    """Sampler, guidance, masked image and mask channel are those of diffusers' own inpainting pipeline."""
    ours = small_inpainter(tmp_path, "tiny")
    ours.latent_space.mean.zero_()
    ours.latent_space.std.fill_(1.0)
    stock = StableDiffusionInpaintPipeline(
        ours.latent_space.vae, ours.text_encoder, ours.tokenizer, ours.unet,
        make_scheduler("pndm", ours.scheduler_config), None, None, requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    image, mask = random_image(64, 64), box(64, 64, 0.25, 0.75, 0.125, 0.5)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(9))[None]
    expected = stock(
        "a red cube", Image.fromarray(image), Image.fromarray(mask), latents=noise, height=64, width=64,
        num_inference_steps=6, guidance_scale=7.5, negative_prompt="a ball", output_type="np",
    ).images[0]  # fmt: skip
    options = replace(COMPAT, steps=6, negative="a ball")
    result = paint(image, [(mask, "a red cube")], ours, 9, options, progress=False)
    assert np.abs(expected * 255 - result.image_u8).max() < 1.0


@pytest.mark.parametrize(
    "changed",
    [
        {"rca": False},
        {"layout": "nearest"},
        {"encoding": "separate"},
        {"soft_edges": 24.0},
        {"negative": "a cone"},
        {"strength": 0.5},
        {"guidance": 1.0},
        {"scheduler": "euler"},
        {"steps": 3},
        {"resolution": 96},
        {"speed": "balanced"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_option_matters(pipe, changed):
    regions = [
        (box(64, 64, 0.1, 0.55, 0.1, 0.56), "a red cube"),
        (box(64, 64, 0.6, 0.99, 0.6, 0.97), "a ball"),
    ]
    plain, other = (
        paint(random_image(64, 64), regions, pipe, 0, options, progress=False)
        for options in (QUICK, replace(QUICK, **changed))
    )
    assert not np.array_equal(plain.image_u8, other.image_u8)
    assert other.recipe["options"][next(iter(changed))] == next(iter(changed.values()))


def test_negative_prompts_of_a_region_are_read_in_that_region_only(pipe):
    masks = [mask for mask, _ in two(64, 64)]
    regions = [RegionPrompt(masks[0], "a red cube", "a striped cone"), RegionPrompt(masks[1], "a ball")]
    chosen = resolve_options(pipe, QUICK)
    one = PaintJob(random_image(64, 64), regions).prepare(pipe, chosen)
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda *call: calls.append(call[-1]), with_kwargs=True)
    with_ = paint(random_image(64, 64), regions, pipe, 0, QUICK, progress=False)
    hook.remove()
    regional = calls[0]["cross_attention_kwargs"]["regions"]
    unconditional, conditional = regional[64][:, 0]  # (n, t) each, negative half first
    inside = torch.nn.functional.adaptive_max_pool2d(one.masks.float(), 8).flatten(1) > 0
    for bias, counts in ((unconditional, (3, 0)), (conditional, (3, 2))):
        seen = (bias == 0).sum(1)  # tokens that each cell reads
        assert set(seen[inside[0] & ~inside[1]].tolist()) == {77 - counts[1]}
        assert set(seen[inside[1] & ~inside[0]].tolist()) == {77 - counts[0]}
        assert set(seen[~inside.any(0)].tolist()) == {77}
    without = [replace(region, negative="") for region in regions]
    plain = paint(random_image(64, 64), without, pipe, 0, QUICK, progress=False)
    assert not np.array_equal(with_.image_u8, plain.image_u8)


def test_v_prediction_with_zero_terminal_noise_ratio(tmp_path):
    pipe = small_inpainter(tmp_path)
    pipe.scheduler_config |= {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "_class_name": "DDIMScheduler",
    }  # fmt: skip
    result = paint(random_image(64, 64), two(64, 64), pipe, 0, PaintOptions(steps=2), progress=False)
    assert result.recipe["options"]["scheduler"] == "DDIMScheduler"
    assert result.report["drift"][0]["changed_inside"] > 0


def test_defaults_are_the_published_ones(pipe, tiny):
    steps = []
    options = PaintOptions(guidance=1.0)
    job = PaintJob(random_image(16, 16), [(np.ones((16, 16), bool), "a")])
    result = paint_all([job], pipe, options, Monitor(steps.append, progress=False))[0]
    recipe = result.recipe["options"]
    assert (recipe["scheduler"], recipe["steps"], recipe["layout"]) == ("PNDMScheduler", 50, "coverage")
    assert len(steps) == 51, "PNDM evaluates the network once more than it has steps"
    assert Recommended().guidance == 7.5
    own = paint(random_image(16, 16), [(np.ones((16, 16), bool), "a")], tiny, progress=False).recipe[
        "options"
    ]
    assert (own["scheduler"], own["steps"], own["encoding"]) == ("euler", 2, "separate")


def test_cancelling(pipe):
    seen: list = []
    monitor = Monitor(seen.append, lambda: len(seen) == 1, progress=False)
    with pytest.raises(Cancelled, match="after 1 of 2 steps"):
        paint_all([PaintJob(random_image(64, 64), two(64, 64))], pipe, QUICK, monitor)


def test_a_prompt_that_overflows_is_warned_of_and_shown(pipe, caplog):
    long = " ".join(["a red cube"] * 30)
    with caplog.at_level(logging.WARNING):
        result = paint(random_image(64, 64), [(two(64, 64)[0][0], long)], pipe, 0, QUICK, progress=False)
    assert "prompt 1 is too long" in caplog.text
    (cut,) = result.report["cuts"]
    assert f"{cut['kept']} {cut['lost']}" == long
    assert len(cut["kept"].split()) == 75


REFUSED = {
    "nothing": ([], "nothing to paint: give at least one"),
    "other size": ([(np.ones((20, 64), bool), "a")], r"mask 1 must be .* \(20, 64\), its image \(64, 64\)"),
    "empty mask": (
        [(np.ones((64, 64), bool), "a"), (np.zeros((64, 64), bool), "b")],
        "mask 2 is empty",
    ),
    "not bool": ([(np.ones((64, 64), np.uint8) * 255, "a")], "mask 1 must be bool .* mask > 127"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_regions(pipe, name):
    regions, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        paint(random_image(64, 64), regions, pipe, 0, QUICK, progress=False)


def test_refused_images_and_settings(pipe):
    with pytest.raises(ValueError, match=r"RGB \(h, w, 3\) uint8, got float32"):
        paint(random_image(64, 64).astype(np.float32), two(64, 64), pipe)
    with pytest.raises(ValueError, match="no seed"):
        paint_all([PaintJob(random_image(64, 64), two(64, 64), ())], pipe)
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        paint(random_image(64, 64), two(64, 64), pipe, 0, PaintOptions(scheduler="dimm"), progress=False)
    with pytest.raises(ValueError, match="steps must be"):
        PaintOptions(steps=0)


def test_masks_and_prompts_come_in_pairs():
    mask = np.ones((4, 4), bool)
    assert [one.prompt for one in pair_masks([mask, mask], ["a", "b"], ["", "c"])] == ["a", "b"]
    for masks, prompts, negatives, message in (
        ([mask], ["a", "b"], [], "more prompts than masks: 2 prompts, 1 masks"),
        ([mask, mask], ["a"], [], "more masks than prompts: 1 prompts, 2 masks"),
        ([mask], [], [], "1 masks and 0 prompts"),
        ([], ["a"], [], "0 masks and 1 prompts"),
        ([mask, mask], ["a", "b"], ["c"], "1 negative prompts for 2 masks"),
    ):
        with pytest.raises(ValueError, match=message):
            pair_masks(masks, prompts, negatives)


def test_swapped_processors_stop_the_pipeline(tmp_path):
    pipe = small_inpainter(tmp_path)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="switched off"):
        paint(random_image(64, 64), two(64, 64), pipe, 0, QUICK, progress=False)


def test_many_samples_are_painted_in_batches(pipe, monkeypatch):
    module = "inpainting.models.text_to_image.sample"
    monkeypatch.setattr(f"{module}.AT_ONCE", 3)
    batches = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, given: batches.append(len(given[0])))
    image, regions = random_image(64, 64), two(64, 64)
    together = paint(image, regions, pipe, 5, QUICK, samples=7, progress=False)
    several = paint_all(
        [PaintJob(image, regions, (5, 6)), PaintJob(image[::-1].copy(), regions, (5, 6))], pipe, QUICK
    )
    hook.remove()
    assert batches == [6, 6, 6, 6, 2, 2, 6, 6, 2, 2]  # guidance doubles them; two steps each
    for sample in (0, 3, 6):
        alone = paint(image, regions, pipe, 5 + sample, QUICK, progress=False).image_u8
        assert np.abs(together.images_u8[sample].astype(int) - alone).max() <= 1
    flipped = paint(image[::-1].copy(), regions, pipe, 6, QUICK, progress=False).image_u8
    assert np.abs(several[1].images_u8[1].astype(int) - flipped).max() <= 1


@pytest.mark.parametrize(
    ("fraction", "apart"),
    [(1.0, [1, 1, 1, 1]), (0.5, [1, 1, 0, 0]), (0.3, [1, 1, 0, 0]), (0.0, [0, 0, 0, 0])],
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_regions_may_be_joined_after_a_part_of_the_steps(pipe, fraction, apart, strength):
    """Joined, every pixel reads every token; the prompts of other regions than its own are hidden before."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda unet, given, named: seen.append(named["cross_attention_kwargs"]["regions"]), with_kwargs=True
    )
    steps = 4 if strength == 1 else 8
    options = replace(QUICK, steps=steps, strength=strength, join_from=fraction)
    image = random_image(64, 64)
    result = paint(image, two(64, 64), pipe, 3, options, progress=False)
    hook.remove()
    assert [int(any(bias.isneginf().any() for bias in step.values())) for step in seen] == apart
    plain = paint(image, two(64, 64), pipe, 3, replace(options, join_from=1.0), progress=False)
    assert np.array_equal(result.image_u8, plain.image_u8) == (fraction == 1)
    assert result.recipe["options"]["join_from"] == fraction
