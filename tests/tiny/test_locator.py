"""The small locator: text, packing, a training of a few steps that continues, its folder; the bundled one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from datasets.scenes.batch import render
from datasets.scenes.layout import sample_scene
from datasets.scenes.settings import SceneOptions, StoreSettings, eval_seed
from datasets.scenes.store import read_shard, render_shards
from llava_bifrost.evaluate import run as evaluate
from llava_bifrost.evaluate.measures import LocatorCase, Measures
from llava_bifrost.language.answer import parse_answer
from llava_bifrost.language.instruction import InstructionError, make_instruction, make_question
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.locator import load_locator
from llava_bifrost.worlds.questions import place_questions, replace_questions
from llava_bifrost.worlds.world import World
from tests.conftest import ROOT
from tiny.llava import create_llava, last_states, project
from tiny.locator import questions as question_cache
from tiny.locator.questions import (
    ANSWER,
    NUMBERS,
    VOCABULARY,
    ImageDraw,
    QuestionCache,
    locator_tokenizer,
    mirrored_questions,
    open_questions,
    pack_questions,
)
from tiny.locator.train import LocatorTraining
from tiny.locator.training import labelled_images, open_scenes, train_small_locator
from tiny.settings import PATCH, LlavaStage, SmallConfig

TINY = SmallConfig(
    image=64, width=32, heads=2, stages=(8, 16, 16), blocks=(1, 1, 1), vision_layers=1, layers=2, hidden=48
)
SENTENCE = "Place the two-tone red cone to the left of the low platform and on top of the striped teal box"
ANSWER_TEXT = "[0.74, 0.46, 0.97, 0.78], 0.65."
BUNDLED = ROOT / "assets/tiny/locator"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen scenes of 64 px."""
    folder = tmp_path_factory.mktemp("scenes")
    options = StoreSettings(out=folder, count=18, size=(64, 64), reference_size=(16, 16), smooth_edges=False)
    render_shards(options)
    return folder


@pytest.fixture(scope="module")
def bank(data: Path, tmp_path_factory: pytest.TempPathFactory) -> QuestionCache:
    return open_questions(data, tmp_path_factory.mktemp("bank"), seed=0)


def training(data: Path, out: Path, placement: int = 4) -> LocatorTraining:
    stage = LlavaStage(steps=4, batch=3, vision_lr=1e-4, warmup=2)
    return LocatorTraining(
        data=data,
        out=out,
        held_out=3,
        model=TINY,
        vision=stage,
        matching=stage,
        placement=replace(stage, steps=placement),
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_small_locator(training(data, out))
    return out


def words(ids: np.ndarray) -> list[str]:
    return [VOCABULARY[i] for i in ids]


def test_question_and_answer_keep_the_published_text() -> None:
    tokenizer = locator_tokenizer()
    question = make_question(parse_instruction(SENTENCE))
    ids = tokenizer(f"{question} ASSISTANT: {ANSWER_TEXT}</s>", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert "to the left of" in words(ids)
    assert "on top of" in words(ids)
    assert words(ids[-ANSWER:]) == ["[", "0.74", "0.46", "0.97", "0.78", "]", "0.65", "</s>"]
    assert tokenizer.decode(ids[-ANSWER:], skip_special_tokens=True) == ANSWER_TEXT


def test_every_number_is_one_token_and_decodes_to_itself() -> None:
    tokenizer = locator_tokenizer()
    for value in range(101):
        text = f"[0.00, {value / 100:.2f}, 1.00, 1.00], {value / 100:.2f}."
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == ANSWER - 1
        assert tokenizer.decode(ids) == text


def test_the_chat_template_marks_the_answer() -> None:
    asked = {"role": "user", "content": "Replace the red cone"}
    turns = [asked, {"role": "assistant", "content": ANSWER_TEXT}]
    found = locator_tokenizer().apply_chat_template(
        turns, return_assistant_tokens_mask=True, return_dict=True
    )
    answer = np.array(found["input_ids"])[np.array(found["assistant_masks"], bool)]
    assert words(answer)[0] == "["
    assert len(answer) == ANSWER


def test_training_pixels_are_the_processors(data: Path, trained: Path, tmp_path: Path) -> None:
    scenes = open_scenes(data, tmp_path)
    processor = AutoProcessor.from_pretrained(trained / "model")
    one = labelled_images(scenes, ImageDraw(np.array([3]), np.array([1]), np.array([False])))
    same = processor.image_processor(scenes.images_u8[3, 1], return_tensors="pt").pixel_values
    torch.testing.assert_close(one.pixels, same, atol=1e-5, rtol=0)


def test_labels_of_patches(data: Path, tmp_path: Path) -> None:
    scenes, facts = open_scenes(data, tmp_path), read_shard(data / "shard-00000.safetensors").facts
    for i, fact in enumerate(facts):
        assert (scenes.labels[i, : len(fact.names), 0] >= 0).all()
        assert (scenes.labels[i, len(fact.names) :] == -1).all()
        assert scenes.cover_u8[i, 1, :, fact.removed].max() == 0  # it is not in image 1
        assert scenes.cover_u8[i, 0, :, fact.removed].max() > 0
    plain, turned = (
        labelled_images(scenes, ImageDraw(np.arange(4), np.zeros(4, int), np.full(4, flip)))
        for flip in (False, True)
    )
    torch.testing.assert_close(turned.pixels, plain.pixels.flip(-1))
    side = TINY.image // PATCH
    grid = plain.cover.reshape(4, side, side, -1).flip(2).reshape(turned.cover.shape)
    torch.testing.assert_close(turned.cover, grid)
    there = plain.place[..., 2] > 0
    torch.testing.assert_close(turned.place[..., 0][there], 1 - plain.place[..., 0][there])


def test_the_bank_names_what_it_asks_for(data: Path, bank: QuestionCache) -> None:
    facts = read_shard(data / "shard-00000.safetensors").facts
    asked = 0
    for scene, view, q in np.argwhere(bank.length > 0):
        tokens = bank.tokens[scene, view, q, : bank.length[scene, view, q]]
        assert words(tokens)[-1] == "</s>"
        for solid, at in zip(bank.named[scene, view, q], bank.named_at[scene, view, q], strict=True):
            if solid >= 0:
                assert words(tokens)[at] == facts[scene].names[solid].split()[-1]
                asked += 1
    assert asked > 100


def test_the_bank_is_made_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_questions(data, tmp_path, seed=0)
    monkeypatch.setattr(question_cache, "shard_questions", lambda *_: pytest.fail("made again"))
    again = open_questions(data, tmp_path, seed=0)
    assert (first.tokens == again.tokens).all()
    with pytest.raises(ValueError, match="other settings"):
        open_questions(data, tmp_path, seed=1)


def test_mirrored_tokens_are_the_mirrored_question(bank: QuestionCache) -> None:
    tokenizer = locator_tokenizer()
    picked = np.argwhere(bank.length > 0)[:60]
    tokens = np.stack([bank.tokens[tuple(at)] for at in picked]).astype(np.int64)
    length = np.array([bank.length[tuple(at)] for at in picked]).astype(np.int64)
    turned = mirrored_questions(tokens, length)
    assert (mirrored_questions(turned, length) == tokens).all()
    for one, other, end in zip(tokens, turned, length, strict=True):
        before, after = (parse_answer(tokenizer.decode(row[end - ANSWER : end])) for row in (one, other))
        x0, y0, x1, y1 = before.box01_xyxy
        assert after.box01_xyxy == pytest.approx((1 - x1, y0, 1 - x0, y1))
        asked, sides = words(one[: end - ANSWER]), {"left of", "right of", "to the right of"}
        if not sides & set(asked):
            swapped = ["to the right of" if word == "to the left of" else word for word in asked]
            assert words(other[: end - ANSWER]) == swapped


def test_packed_questions_are_answered_as_if_alone(data: Path, bank: QuestionCache, tmp_path: Path) -> None:
    """Every question of a sequence gets the logits that the stock model gives to that question alone."""
    scenes = open_scenes(data, tmp_path)
    model = create_llava(TINY, VOCABULARY, 0, NUMBERS).eval()
    model.set_attn_implementation("eager")
    draw = ImageDraw(np.array([0, 4]), np.array([0, 1]), np.array([False, True]))
    batch = labelled_images(scenes, draw)
    with torch.inference_mode():
        asked = pack_questions(bank, draw, np.random.default_rng(0), (3, 1), TINY.patches)
        patches = project(model, batch.pixels)
        packed = model.lm_head(last_states(model, patches, asked.tokens, asked.block, asked.position))
        for row, end in zip(asked.row.tolist(), asked.end.tolist(), strict=True):
            number = asked.block[row, end]
            mine = (asked.block[row] == 0) | (asked.block[row] == number)
            ids, pixels = asked.tokens[row][mine][None], batch.pixels[row : row + 1]
            alone = model(input_ids=ids, pixel_values=pixels).logits[0, asked.block[row][mine] == number]
            torch.testing.assert_close(alone, packed[row, asked.block[row] == number], atol=2e-4, rtol=1e-3)


def test_training_writes_a_folder_that_answers(trained: Path) -> None:
    locator = load_locator(trained / "model")
    image = np.zeros((64, 64, 3), np.uint8)
    (answer,) = locator.locate(image, "Place the red cone behind the blue cube")
    assert answer.text == locator.locate(image, "place the red cone behind the blue cube.")[0].text
    with pytest.raises(InstructionError, match="'sofa'.*cone"):
        locator.locate(image, "Place the red cone behind the sofa")
    processor = AutoProcessor.from_pretrained(trained / "model")
    model = AutoModelForImageTextToText.from_pretrained(trained / "model")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    manifest = json.loads((trained / "model/manifest.json").read_text())
    assert manifest["parameters"] == model.num_parameters()
    assert {"shape", "box_l1"} <= set(manifest["held_out"]["gates"]["vision"])


def test_a_training_continues_where_it_stopped(data: Path, trained: Path, tmp_path: Path) -> None:
    """Two steps of the last stage, then the rest: the same weights as in one go."""
    shutil.copytree(trained / "cache", tmp_path / "cache")
    train_small_locator(training(data, tmp_path, placement=2))
    first = torch.load(tmp_path / "placement.pt", weights_only=True)
    assert first["step"] == 2
    train_small_locator(training(data, tmp_path))
    whole, parts = (torch.load(folder / "matching.pt", weights_only=True) for folder in (trained, tmp_path))
    for name, value in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], value)
    assert torch.load(tmp_path / "placement.pt", weights_only=True)["step"] == 4
    assert (trained / "matching.csv").read_text().startswith("step,seconds,loss,kl_x1")


def test_the_evaluation_counts_everything(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    texts = "<image>\nPlace the red cone behind the blue cube", "[0.10, 0.10, 0.30, 0.40], 0.30."
    turns = [{"value": text} for text in texts]
    records = [{"id": "0", "image": "a.png", "conversations": turns, "meta": {
        "request": {"target": "red cone", "relations": [["behind", "blue cube"]], "replace": False},
        "box01_xyxy": [0.1, 0.1, 0.3, 0.4], "depth": 0.3, "far": 0.25, "near": 0.35,
        "anchors": {"blue cube": {"box01_xyxy": [0.1, 0.2, 0.4, 0.6], "d": 0.5, "far": 0.45, "near": 0.6}},
    }}]  # fmt: skip
    Image.fromarray(read_shard(data / "shard-00000.safetensors").image_u8[0]).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(json.dumps(records * 3))
    asked = tmp_path / "data.json"
    config = evaluate.LocatorEvaluation(model=trained / "model", dataset=asked, out=out, candidates=3)
    result = evaluate.evaluate_locator(config)
    row = result["place"][evaluate.GREEDY]
    assert row["parsed"]["mean"] == 1
    assert row["valid"]["n"] == 3
    assert "ground" not in row  # nothing is known of the room
    assert json.loads(out.read_text())["place"].keys() == result["place"].keys()
    assert "BBox MSE" in out.with_suffix(".txt").read_text()
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[LocatorCase]:
    """Two questions each about 32 held-out scenes that no training and no other test has seen."""
    options = SceneOptions(reference_size=(16, 16), smooth_edges=False)
    cases = []
    for index in range(900_000, 900_032):
        scene = sample_scene(eval_seed(index), options)
        batch = render([scene], options)
        world = World.of(scene, batch.facts[0]).without(scene.removed)
        image = (batch.without_01[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        rng = np.random.default_rng(index)
        anchors = {world.solids.names[i]: world.place(i) for i in world.anchors}
        for question in (*place_questions(world, rng, 2), *replace_questions(world, rng, 1)):
            cases.append(LocatorCase(str(index), image, question.request, question.answer, anchors, world))
    return cases


@pytest.mark.skipif(not (BUNDLED / "config.json").is_file(), reason="no locator in the bundle")
def test_the_bundled_locator_sees(held_out: list[LocatorCase]) -> None:
    locator = load_locator(BUNDLED)
    assert locator.mllm.model.num_parameters() < 3.2e6
    rows = {}
    for kind in ("place", "replace"):
        cases = [case for case in held_out if case.request.replace == (kind == "replace")]
        images = [case.image_u8 for case in cases]
        texts = [make_instruction(case.request) for case in cases]
        answers = evaluate.greedy_answers(locator, texts, images, 64)
        shuffled = evaluate.greedy_answers(
            locator, texts, images[len(images) // 2 :] + images[: len(images) // 2], 64
        )
        assert None not in [*answers, *shuffled]
        rows[kind] = [list(map(evaluate.measure_answer, cases, found)) for found in (answers, shuffled)]
    (true, other), (found, elsewhere) = rows["place"], rows["replace"]
    assert mean(true, "relations") > mean(other, "relations") + 0.2
    assert mean(true, "valid") > mean(other, "valid") + 0.1
    assert mean(found, "iou") > mean(elsewhere, "iou") + 0.1


def mean(rows: list[Measures], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
