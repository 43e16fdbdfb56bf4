"""The small prompt writer: distribution, scenes, masks, text, training, evaluation; the bundled one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from datasets.scenes.batch import render
from datasets.scenes.settings import eval_seed, train_seed
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.prompts import discover_question, paint_masks, target_text
from ldm.mllm.model import Chat, ChatExample
from tests.conftest import ROOT
from tiny.llava import create_llava, last_states, pixel_values, project
from tiny.prompter.evaluate import PrompterEvaluation
from tiny.prompter.measures import (
    PRIOR,
    box_answers,
    caption_results,
    evaluate_prompter,
    prompt_case,
    task_numbers,
)
from tiny.prompter.scenes import SetScenes
from tiny.prompter.sets import (
    FOLLOW,
    KEPT,
    OVERLAP,
    SOLIDS,
    Painted,
    Sets,
    best_guess,
    draw_contents,
    draw_masks,
    open_sets,
    paint_scenes,
    predictive,
    render_sets,
    sample_sets,
    side_of,
)
from tiny.prompter.train import PrompterTraining
from tiny.prompter.training import CAPTION, VOCABULARY, pack_captions, train_prompter
from tiny.report import scene_mean
from tiny.settings import MASK_COLORS, LlavaStage, SmallConfig
from tiny.world import COLOUR_WORDS, SHAPE_WORDS, Name, box_masks, caption_of, overlap

TINY = SmallConfig(
    image=64, width=32, heads=2, stages=(8, 16, 16), blocks=(1, 1, 1), vision_layers=1, layers=3, hidden=48
)
SMALL = {"size": (64, 64), "smooth_edges": False}
BUNDLED = ROOT / "assets/tiny/prompter"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of 64 px."""
    folder = tmp_path_factory.mktemp("sets")
    render_sets(SetScenes(out=folder, count=12, split="eval", **SMALL))
    return folder


@pytest.fixture(scope="module")
def sets(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return open_sets(data, tmp_path_factory.mktemp("cache"), 12)


def training(data: Path, out: Path, steps: int = 4) -> PrompterTraining:
    stage = LlavaStage(steps=4, batch=4, vision_lr=1e-4, warmup=2)
    writing = LlavaStage(steps=steps, batch=4, vision_lr=1e-4, warmup=2)
    return PrompterTraining(
        data=data, out=out, scenes=12, held_out=4, model=TINY, vision=stage, writing=writing
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_prompter(training(data, out))
    return out


def drawn_set(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    """Words of the solids of one set, straight from the definition."""
    shared = words[rng.integers(len(words))]
    return [shared if rng.random() < FOLLOW else words[rng.integers(len(words))] for _ in range(count)]


@pytest.mark.parametrize("words", [COLOUR_WORDS, SHAPE_WORDS])
@pytest.mark.parametrize("seen", [0, 1, 2, 4])
def test_the_best_guess_is_as_often_right_as_predicted(words: tuple[str, ...], seen: int) -> None:
    rng, count = np.random.default_rng(seen), 4000
    sets = [drawn_set(rng, words, seen + 1) for _ in range(count)]
    right = np.mean([best_guess(some[:seen], words) == some[seen] for some in sets])
    expected = np.mean([predictive(some[:seen], words).max() for some in sets])
    assert right == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / count))


def test_the_best_guess_is_the_most_frequent_word() -> None:
    assert predictive(["red", "red", "blue"], COLOUR_WORDS).sum() == pytest.approx(1)
    assert predictive([], COLOUR_WORDS).max() == pytest.approx(1 / 15)
    assert best_guess(["blue", "red", "red"], COLOUR_WORDS) == "red"


def painted(sets: Sets, count: int, most: int, seed: int, flip: bool = False) -> Painted:
    """The first scenes with random masks."""
    rng = np.random.default_rng(seed)
    masks = [draw_masks(sets, scene, most, rng) for scene in range(count)]
    return paint_scenes(sets, np.arange(count), np.full(count, flip), masks)


def test_a_scene_has_the_words_that_were_drawn_for_it() -> None:
    options = SetScenes(**SMALL)
    for seed in (train_seed(3), eval_seed(3)):
        scene = sample_sets(seed, options)
        rng = np.random.default_rng((seed, 77))
        shapes, colours = draw_contents(rng, int(rng.integers(4, 8)))
        solids = [solid for solid in scene.solids if solid.movable]
        facts = render([scene], options).facts[0]
        boxes = [box for box, movable in zip(facts.boxes01, facts.movable, strict=True) if movable]
        assert [solid.shape for solid in solids] == shapes
        for solid, pair, box in zip(solids, colours, boxes, strict=True):
            assert solid.name == f"{pair[side_of((box[0] + box[2]) / 2)]} {solid.shape}"
    words = [draw_contents(np.random.default_rng(i), 2)[0] for i in range(4000)]
    agree = np.mean([a == b for a, b in words])
    same = FOLLOW**2 + (1 - FOLLOW**2) / len(SHAPE_WORDS)
    assert agree == pytest.approx(same, abs=4 * np.sqrt(same * (1 - same) / 4000))


def test_masks_hide_one_solid_each(sets: Sets) -> None:
    count = 0
    for scene in range(len(sets.kind)):
        for seed in range(8):
            masked = draw_masks(sets, scene, 5, np.random.default_rng((scene, seed)))
            if not masked.solids:
                continue
            masks, instances = box_masks(masked.boxes, (64, 64)), sets.instances_u8[scene]
            under = np.any(masks, axis=0)
            for solid, mask in zip(masked.solids, masks, strict=True):
                assert mask[instances == solid + 1].all()
                count += 1
            free = [s for s in np.flatnonzero(sets.colour[scene] >= 0) if s not in masked.solids]
            assert len(free) >= 2
            for solid in free:
                assert (~under)[instances == solid + 1].sum() >= KEPT * sets.pixels[scene, solid]
            for i, box in enumerate(masked.boxes):
                assert all(overlap(box, other) <= OVERLAP for other in masked.boxes[:i])
    assert count > 80


def test_painted_images_are_the_writers(sets: Sets) -> None:
    plain, turned = painted(sets, 8, 5, seed=1), painted(sets, 8, 5, seed=1, flip=True)
    assert (turned.images_u8 == plain.images_u8[:, :, ::-1]).all()
    for row, one in enumerate(plain.masks):
        colors = [MASK_COLORS[number] for number in one.colours]
        wanted = paint_masks(sets.images_u8[row], list(box_masks(one.boxes, (64, 64))), colors)
        assert (plain.images_u8[row] == wanted).all()
        shown = plain.cover[row, :, SOLIDS : SOLIDS + len(colors)].max(0)
        assert (shown > 0).all()
    there = plain.place[..., 2] > 0
    np.testing.assert_allclose(turned.place[..., 0][there], 1 - plain.place[..., 0][there], atol=1e-6)
    assert set(plain.side[plain.side >= 0] + turned.side[turned.side >= 0]) == {1}


def test_training_text_is_the_published_question_and_answer(trained: Path, sets: Sets) -> None:
    images = painted(sets, 6, 3, seed=0)
    packed = pack_captions(images, TINY.patches)
    chat = Chat(AutoProcessor.from_pretrained(trained / "model"))
    for row, one in enumerate(images.masks):
        colors = [MASK_COLORS[number] for number in one.colours]
        names = [Name("", COLOUR_WORDS[images.colour[row, s]], SHAPE_WORDS[images.kind[row, s]])
                 for s in one.solids]  # fmt: skip
        answer = target_text([(c, caption_of(name)) for c, name in zip(colors, names, strict=True)])
        ask = ChatExample(images.images_u8[row], discover_question(colors), answer)
        batch = chat.examples([ask])
        own = packed.tokens[row, : int(packed.end[row]) + 1]
        assert batch["input_ids"][0].tolist() == own.tolist()
        said = batch["labels"][0] >= 0
        assert chat.tokenizer.decode(own[said], skip_special_tokens=True) == answer
        assert said.sum() == CAPTION * len(colors) + 1


def test_a_caption_is_learned_as_it_is_written(sets: Sets) -> None:
    """Logits of a batch are the stock model's; where captions are alone, earlier ones change nothing."""
    model = create_llava(TINY, VOCABULARY, 0).eval()
    model.set_attn_implementation("eager")
    images = painted(sets, 8, 3, seed=3)
    pixels, rows = (
        pixel_values(images.images_u8),
        [i for i, one in enumerate(images.masks) if len(one.solids) > 1],
    )
    with torch.inference_mode():
        together, alone = (pack_captions(images, TINY.patches, flags) for flags in (None, np.ones(8, bool)))
        logits, apart = (
            model.lm_head(last_states(model, project(model, pixels), packed.tokens, packed.block))
            for packed in (together, alone)
        )
        for row in rows:
            end = int(together.end[row])
            own = model(input_ids=together.tokens[row : row + 1, :end], pixel_values=pixels[row : row + 1])
            torch.testing.assert_close(own.logits[0], logits[row, :end], atol=2e-4, rtol=1e-3)
            first = int(together.at[together.row == row][0]) + CAPTION
            torch.testing.assert_close(apart[row, :first], logits[row, :first], atol=2e-4, rtol=1e-3)
            assert not torch.allclose(apart[row, first:end], logits[row, first:end], atol=1e-3)
    assert rows


def test_training_writes_a_folder_that_answers(trained: Path, sets: Sets) -> None:
    writer = PromptWriter.load(trained / "model")
    cases = [case for scene in range(4) if (case := prompt_case(sets, scene, 3, 0))]
    answers = writer.write([case.image_u8 for case in cases], [case.masks for case in cases])
    assert [len(told) for told in answers] == [len(case.hidden) for case in cases]
    assert all(text for told in answers for text in told)
    manifest = json.loads((trained / "model/manifest.json").read_text())
    assert {"shape", "box_l1"} <= set(manifest["held_out"]["gates"]["vision"])
    assert (trained / "writing.csv").read_text().startswith("step,seconds,loss,loss_colour")


def test_a_training_continues_where_it_stopped(data: Path, trained: Path, tmp_path: Path) -> None:
    train_prompter(training(data, tmp_path, steps=2))
    assert torch.load(tmp_path / "writing.pt", weights_only=True)["step"] == 2
    train_prompter(training(data, tmp_path))
    whole, parts = (torch.load(folder / "vision.pt", weights_only=True) for folder in (trained, tmp_path))
    for name, value in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], value)
    assert torch.load(tmp_path / "writing.pt", weights_only=True)["step"] == 4


def test_vision_of_another_model_is_the_start(data: Path, trained: Path, tmp_path: Path) -> None:
    still = LlavaStage(steps=1, batch=4, lr=1e-4)
    config = replace(training(data, tmp_path), vision_from=trained / "model", vision=still)
    with pytest.raises(ValueError, match="vision_tower"):
        train_prompter(replace(config, model=replace(TINY, width=64)))
    train_prompter(config)
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert list(manifest["vision_from"]) == ["model.safetensors"]


def test_a_blind_writer_gives_one_answer_for_every_image(data: Path, sets: Sets, tmp_path: Path) -> None:
    train_prompter(replace(training(data, tmp_path), blind=True))
    writer = PromptWriter.load(tmp_path / "model")
    cases = [case for scene in range(len(sets.kind)) if (case := prompt_case(sets, scene, 1, 0))]
    answers = writer.write([case.image_u8 for case in cases], [case.masks for case in cases])
    assert len({text for told in answers for text in told}) == 1


def test_the_evaluation_counts_everything(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    config = PrompterEvaluation(model=trained / "model", blind=None, data=data, out=out, scenes=12)
    tasks = evaluate_prompter(config)["tasks"]
    assert isinstance(tasks, dict)
    for numbers in tasks.values():
        rows = numbers["accuracy"]
        assert PRIOR["both"] < rows["ceiling"]["both"]["mean"] < rows["ceiling"]["colour"]["mean"] < 1
        assert {"prompter", "another image", "box alone", "Bayes-optimal", "ceiling", "prior"} == set(rows)
    assert tasks["multimask last"]["masks"] == tasks["multimask"]["images"]
    assert json.loads(out.read_text())["weights"]
    assert "ceiling" in out.with_suffix(".txt").read_text()
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("scenes", [2, 3, 12])
def test_boxes_answer_from_few_scenes_too(sets: Sets, scenes: int) -> None:
    few = replace(sets, **{name: value[:scenes] for name, value in vars(sets).items()})
    cases = [case for scene in range(scenes) if (case := prompt_case(few, scene, 1, 0))]
    assert [len(answers) for answers in box_answers(few, cases, 1)] == [1] * len(cases)


def test_bayes_optimal_answers_reach_the_gap(sets: Sets) -> None:
    cases = [case for scene in range(12) for seed in range(6) if (case := prompt_case(sets, scene, 5, seed))]
    found = caption_results(cases, [[caption_of(guess) for guess in case.guesses] for case in cases])
    assert scene_mean(found, "colour")["mean"] == np.mean([one["bayes_colour"] for one in found]).round(4)
    truth = caption_results(cases, [[caption_of(name) for name in case.hidden] for case in cases])
    assert scene_mean(truth, "both")["mean"] == 1
    assert task_numbers({"prompter": truth})["gap"]["shape"]["mean"] > 1


def test_the_bundled_prompt_writer_sees(tmp_path: Path) -> None:
    """On 32 held-out scenes that no training and no other test has seen."""
    render_sets(SetScenes(out=tmp_path, count=32, first_seed=900_000, split="eval"))
    fresh = open_sets(tmp_path, tmp_path / "cache", 32)
    writer = PromptWriter.load(BUNDLED, device="cpu")
    cases = [case for scene in range(32) if (case := prompt_case(fresh, scene, 5, 0))]
    images = [case.image_u8 for case in cases]
    masks = [case.masks for case in cases]
    own = caption_results(cases, writer.write(images, masks, batch=32))
    other = caption_results(cases, writer.write(images[16:] + images[:16], masks, batch=32))
    assert len(own) > 40
    for measure in ("colour", "shape"):
        right = scene_mean(own, measure)["mean"]
        assert right > PRIOR[measure] + 0.25
        assert right > scene_mean(other, measure)["mean"] + 0.2
