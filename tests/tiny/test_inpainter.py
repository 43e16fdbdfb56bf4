"""The small inpainter: its words, examples, training by stages that can be continued, and its evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import load_inpainter
from tiny.inpainter import measures, training
from tiny.inpainter.evaluate import EvaluationSampling, InpainterEvaluation
from tiny.inpainter.examples import SMALL, Encoder, make_cases, several, single
from tiny.inpainter.measures import paint_examples
from tiny.inpainter.model import create_scheduler
from tiny.inpainter.train import AdapterConfig, InpainterTraining
from tiny.loop import Stage
from tiny.report import scene_mean
from tiny.settings import ClassifierConfig, DiffusionStage, InpainterNetworks, LatentsConfig
from tiny.world import (
    ONE_TOKEN,
    Name,
    Views,
    box_masks,
    caption_of,
    make_tokenizer,
    overlap,
    read_name,
    read_views,
    refuse_training_scenes,
)

SIZE = 64
SHORT = DiffusionStage(steps=4, batch=2, lr=1e-3, log_every=2, bf16=False)


def rendered(folder: Path, split: str, count: int) -> Path:
    settings = StoreSettings(out=folder, count=count, split=split, size=(SIZE, SIZE), objects=(4, 6),
                             reference_size=(16, 16), furniture=0.2)  # fmt: skip
    render_shards(settings)
    return folder


@pytest.fixture(scope="session")
def training_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("views") / "train", "train", 12)


@pytest.fixture(scope="session")
def views(training_scenes: Path) -> Views:
    return read_views(training_scenes)


def settings(data: Path, out: Path) -> InpainterTraining:
    return InpainterTraining(
        data=data,
        out=out,
        first_stage=LatentsConfig(width=8, layers=1, crop=32, loop=SHORT),
        network=InpainterNetworks(
            latent_size=16, block_channels=(8, 16), heads=(1, 2), attention=(False, True), norm_groups=4,
            text_width=16, text_layers=1, text_heads=2,
        ),
        painter=SHORT,
        adapter=AdapterConfig(rank=2, loop=SHORT),
        classifier=ClassifierConfig(width=8, loop=SHORT),
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained(training_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages, a few steps each."""
    out = tmp_path_factory.mktemp("runs") / "inpainter"
    training.train_inpainter(settings(training_scenes, out))
    return out


def test_every_name_of_the_world_is_read_and_written_in_whole_words() -> None:
    tokenizer = make_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in ONE_TOKEN)
    for pattern in PATTERN_WORDS.values():
        for colour in COLOURS:
            for shape in SHAPES:
                text = " ".join(word for word in (pattern, colour, shape) if word)
                assert read_name(text) == Name(pattern, colour, shape)
    assert read_name("low platform") is None
    assert caption_of(Name("", "orange", "egg")) == "an orange egg"


def test_tokenizer_folder_is_a_stock_one(tmp_path: Path) -> None:
    made = make_tokenizer()
    made.save_pretrained(tmp_path)
    stock = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a two-tone red box. Wxyz, 12 m\u00e4use!"
    assert stock(text)["input_ids"] == made(text)["input_ids"]
    assert stock.decode(stock(text, add_special_tokens=False)["input_ids"]).replace(" ", "") == (
        text.lower().replace(" ", "")
    )
    padded = stock("a red box", padding="max_length")["input_ids"]
    assert (len(padded), padded[0], padded[4]) == (77, stock.bos_token_id, stock.eos_token_id)
    assert set(padded[5:]) == {stock.get_vocab()["!"]}


def test_regions_are_tight_boxes_over_named_solids(training_scenes: Path, views: Views) -> None:
    assert len(views) <= 12
    first = read_views(training_scenes, count=7)
    assert first.regions == views.regions[: len(first)]
    for regions in views.regions:
        for region in regions:
            left, top, right, bottom = region.box_xyxy
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert region.name.colour in COLOURS


def test_examples_hold_their_solids_and_depend_on_the_draw_alone(views: Views) -> None:
    plain = [(0, 0), (1, 0)]
    for seed in range(20):
        one = several(views, 5, np.random.default_rng(seed))
        again = several(views, 5, np.random.default_rng(seed))
        assert (one.scene, one.boxes, one.prompts) == (again.scene, again.boxes, again.prompts)
        assert len(one.boxes) == len(one.prompts) <= 5
        alone = single(views, plain, np.random.default_rng(seed))
        solids = {caption_of(region.name): region.box_xyxy for region in views.regions[alone.scene]}
        assert overlap(solids[alone.prompts[0]], alone.boxes[0]) == 1
        assert box_masks(alone.boxes, (SIZE, SIZE)).sum() > 0


def test_questions_give_nothing_away(views: Views) -> None:
    asked = make_cases(views, "random", 2, 5, seed=1)
    assert asked
    for case in asked:
        colours = [name.colour for name in case.wanted]
        assert len(set(colours)) == len(colours) >= 2
        assert all(name.colour != old.colour for name, old in zip(case.wanted, case.stood, strict=True))
        for left, top, right, bottom in case.example.boxes:
            sides = right - left, bottom - top
            assert sides == (SMALL, SMALL) or max(sides) > SMALL - 2
    true = make_cases(views, "true", 2, 5, seed=1)
    assert [case.example.boxes for case in true] == [case.example.boxes for case in asked]
    assert all(case.wanted == case.stood for case in true)


def test_learning_rate_warms_up_holds_and_falls(tmp_path: Path) -> None:
    model, rates = nn.Linear(1, 1), []
    stage = Stage("rate", model, replace(SHORT, steps=100, warmup=10, decay=0.5, lr=1.0), tmp_path)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rates.append(round(stage.optimizer.param_groups[0]["lr"], 3))
        return model.weight.sum(), {}

    stage.train(loss)
    assert [rates[step] for step in (0, 9, 49, 75, 99)] == [0.1, 1.0, 1.0, 0.5, 0.001]


def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def learn(folder: Path, stop: int | None) -> Tensor:
        torch.manual_seed(3)
        model = nn.Linear(3, 1)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            if step == stop:
                raise Stopped
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

        Stage("error", model, replace(SHORT, steps=9, log_every=1), folder).train(loss)
        return model.weight.detach()

    whole = learn(tmp_path / "whole", None)
    with pytest.raises(Stopped):
        learn(tmp_path / "parts", 5)
    assert torch.equal(learn(tmp_path / "parts", None), whole)
    lines = (tmp_path / "parts" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *"123456789"]
    with pytest.raises(ValueError, match="other weights"):
        Stage("error", nn.Conv1d(1, 1, 1, bias=False), SHORT, tmp_path / "parts")
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"state\.pt: an earlier version"):
        Stage("error", model, SHORT, tmp_path / "parts", groups=[([model.weight], 1e-3)])


def test_each_mask_weighs_the_same(trained: Path, views: Views) -> None:
    """An error inside a small mask costs as much as one inside a large mask."""
    model = load_inpainter(trained / "painter" / "model")
    examples = [several(views, 5, np.random.default_rng(seed)) for seed in range(4)]
    encoder = Encoder(model.latent_space.vae)
    known = encoder.conditions(examples, np.random.default_rng(0))
    assert torch.equal(encoder.conditions(examples, np.random.default_rng(0)).latents, known.latents)

    class Off(nn.Module):
        """Answers the target but for an error of 1 within the masks."""

        def forward(self, x: Tensor, t: Tensor, **rest: object) -> object:
            noisy = x[:, :4]
            a = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
            s = (1 - scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
            noise = (noisy - a * known.latents) / s
            return type("Answer", (), {"sample": a * noise - s * known.latents + x[:, 4:5]})

    scheduler = create_scheduler()
    value = training.painting_loss(
        Off(), scheduler, known, torch.zeros(4, 1, 1), torch.Generator().manual_seed(0)
    )
    assert float(value) == pytest.approx(1 + training.OUTSIDE * float(known.mask.mean()), abs=0.01)


def test_stages_are_kept_and_continued(trained: Path, training_scenes: Path) -> None:
    stages = {stage: (trained / stage / "manifest.json").stat().st_mtime_ns for stage in training.STAGES}
    (trained / "plain" / "manifest.json").unlink()
    before = load_file(trained / "plain" / "lora" / training.LORA_FILE)
    training.train_inpainter(settings(training_scenes, trained))
    after = {stage: (trained / stage / "manifest.json").stat().st_mtime_ns for stage in training.STAGES}
    assert [stage for stage in training.STAGES if stages[stage] != after[stage]] == ["plain"]
    again = load_file(trained / "plain" / "lora" / training.LORA_FILE)
    assert all(torch.equal(before[key], again[key]) for key in before)
    manifest = json.loads((trained / "painter" / "manifest.json").read_text())
    assert (manifest["steps"], manifest["samples"]) == (4, 8)


def test_missing_stage_is_named(training_scenes: Path, tmp_path: Path) -> None:
    config = settings(training_scenes, tmp_path)
    for stage, needed in (("painter", "first_stage"), ("rca", "painter")):
        with pytest.raises(ValueError, match=needed):
            training.train_inpainter(replace(config, stages=(stage,)))


def test_lora_has_the_released_keys_and_changes_the_result(trained: Path, views: Views) -> None:
    keys = load_file(trained / "rca" / "lora" / training.LORA_FILE).keys()
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight" in keys
    assert all(key.endswith(("lora.down.weight", "lora.up.weight")) for key in keys)
    base = load_inpainter(trained / "painter" / "model")
    tuned = load_inpainter(trained / "painter" / "model", trained / "rca" / "lora")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert not torch.equal(base.unet.get_parameter(name), tuned.unet.get_parameter(name))


def test_painting_depends_on_the_seed_and_not_on_the_batch(trained: Path, views: Views) -> None:
    pipe = load_inpainter(trained / "painter" / "model")
    cases = make_cases(views, "random", 2, 3, seed=0)[:3]
    examples = [case.example for case in cases]
    options = PaintOptions(steps=2, guidance=2.0, encoding="separate")
    one, both = (paint_examples(pipe, examples, [1, 2, 3], options, batch) for batch in (1, 3))
    assert np.abs(one.astype(int) - both).max() <= 1
    assert (one != paint_examples(pipe, examples, [4, 5, 6], options, 16)).any()
    for image, example in zip(one, examples, strict=True):
        outside = ~box_masks(example.boxes, (SIZE, SIZE)).any(0)
        assert np.array_equal(image[outside], example.image_u8[outside])


def test_share_of_masks_with_an_interval_over_scenes() -> None:
    records = [
        {"scene": scene, "colour": scene % 4 != 0, "shape": True} for scene in range(40) for _ in range(2)
    ]
    found = scene_mean(records, "colour")
    assert found["mean"] == 0.75
    assert 0.55 < found["low"] < 0.7
    assert 0.8 < found["high"] < 0.95
    assert scene_mean(records, "shape") == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_evaluation_writes_and_keeps_what_it_painted(trained: Path, tmp_path: Path) -> None:
    held_out = rendered(tmp_path / "eval", "eval", 6)
    config = InpainterEvaluation(
        run=trained, data=held_out, out=tmp_path / "results", sampling=EvaluationSampling(steps=1)
    )
    measures.evaluate_inpainter(config)
    report = json.loads((tmp_path / "results" / "inpainter.json").read_text())
    assert set(report["models"]) == set(measures.MODELS)
    for by in report["models"].values():
        assert by["random"]["all"]["masks"] == by["true"]["all"]["masks"] >= 2 * report["images"]["true"]
    text = (tmp_path / "results" / "inpainter.txt").read_text()
    assert "rca_finetuned" in text
    kept = trained / "evaluation" / "rca_random.npz"
    stamp = kept.stat().st_mtime_ns
    measures.evaluate_inpainter(replace(config, models=("rca",)))
    assert kept.stat().st_mtime_ns == stamp


def test_training_scenes_are_refused_for_evaluation(training_scenes: Path) -> None:
    with pytest.raises(ValueError, match="training scenes"):
        refuse_training_scenes(training_scenes)
