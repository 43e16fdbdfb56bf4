"""Numbers about predicted prompts, against torchmetrics, nltk, a paper's examples and small networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image
from torchmetrics.functional.text import bleu_score
from torchmetrics.functional.text.bert import bert_score
from torchmetrics.text.rouge import ROUGEScore
from transformers import CLIPModel

from benchmarks.small_models import write_clip
from inpainting.models.image_to_text.evaluation.predictions import (
    BertScore,
    PromptMetricModels,
)
from inpainting.models.image_to_text.evaluation.report import (
    ROUGE,
    measure_prompts,
    text_numbers,
    tracked,
)
from ldm.metrics.clip import Clip
from tests.inpainting.prompt_rows import drawn, row, write_roberta


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roberta(tmp_path_factory.mktemp("models") / "roberta")


@pytest.mark.parametrize(
    ("said", "root", "part", "word"),
    [
        ("a woman with a hat", "man", True, False),
        ("Two men and a Man.", "man", True, True),
        ("a flower-pot, red", "flower", True, True),
        ("flowers", "flower", True, False),
        ("a flower", "flowers", False, False),
        ("a reclining nude figure", "reclining nude", True, True),
        ("c++ on a board", "c++", True, True),
        ("", "cat", False, False),
    ],
)
def test_a_root_within_a_word_counts_only_by_the_published_rule(
    said: str, root: str, part: bool, word: bool
) -> None:
    numbers = text_numbers([row(0, said, root=root)])[0][0]
    assert (numbers["accuracy"], numbers["accuracy_words"]) == (part, word)


@pytest.mark.parametrize("seed", range(6))
def test_bleu_is_that_of_torchmetrics(seed: int) -> None:
    rows = drawn(30, seed)
    said, truth = [one.prediction for one in rows], [[one.caption] for one in rows]
    for grams in (1, 4):
        expected = float(bleu_score(said, truth, n_gram=grams))
        assert expected > 0
        assert measure_prompts(rows, resamples=0)[f"bleu{grams}"] == pytest.approx(expected, abs=1e-6)


def test_bleu_is_that_of_nltk_where_both_are_defined() -> None:
    rows = drawn(40, seed=9, shortest=5)
    said, truth = [one.prediction.split() for one in rows], [[one.caption.split()] for one in rows]
    for grams in (1, 4):
        expected = corpus_bleu(truth, said, weights=[1 / grams] * grams)
        assert measure_prompts(rows, resamples=0)[f"bleu{grams}"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("said", ["", "a cat on", "zebra zebra zebra zebra"])
def test_bleu_without_any_match_is_zero(said: str) -> None:
    rows = [row(0, said)]
    assert (
        measure_prompts(rows, resamples=0)["bleu4"]
        == float(bleu_score([said], [["a cat on a mat"]], 4))
        == 0.0
    )


def test_rouge_l_of_the_example_of_its_paper() -> None:
    truth = "police killed the gunman"  # Lin 2004, 3.1: 0.75 and 0.5 for S2 and S3
    rows = [row(0, said, truth) for said in ("police kill the gunman", "the gunman kill police")]
    assert [numbers["rougeL_fmeasure"] for numbers in text_numbers(rows)[0]] == [0.75, 0.5]


def test_rouge_is_the_mean_of_torchmetrics_over_rows() -> None:
    rows = drawn(30, seed=3)
    metric = ROUGEScore(rouge_keys=ROUGE)
    metric.update([one.prediction for one in rows], [one.caption for one in rows])
    report = measure_prompts(rows, resamples=0)
    for name, value in metric.compute().items():
        assert report[name] == pytest.approx(float(value), abs=1e-6)


def test_case_does_not_count() -> None:
    loud = [replace(one, prediction=one.prediction.upper()) for one in drawn(9, seed=1)]
    assert tracked(measure_prompts(loud, resamples=0)) == tracked(
        measure_prompts(drawn(9, seed=1), resamples=0)
    )


def test_bertscore_is_that_of_torchmetrics_row_by_row(roberta_folder: Path) -> None:
    network = BertScore(roberta_folder)
    rows = drawn(40, seed=5, shortest=1)
    for one, found in zip(rows, network.score(rows), strict=True):
        said, truth = [one.prediction], [one.caption]
        expected = bert_score(
            said, truth, model=network.model, user_tokenizer=network.tokenizer, max_length=20
        )
        names = ("precision", "recall", "f1")
        assert found == pytest.approx([float(expected[name]) for name in names], abs=1e-5)


def test_bertscore_of_an_empty_answer_is_zero(roberta_folder: Path) -> None:
    rows = [row(0, ""), row(1, "a cat on a mat")]
    empty, same = BertScore(roberta_folder).score(rows)
    assert empty[2] == 0.0
    assert same == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)


def test_clipsim_is_the_cosine_with_the_squeezed_image_of_the_region(
    clip_folder: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        crop_u8 = rng.integers(0, 256, (20, 50, 3), dtype=np.uint8)
        Image.fromarray(crop_u8).save(tmp_path / f"{number}.png")
    rows = [row(number, "A Red Cat", crop=str(tmp_path / f"{number}.png")) for number in range(2)]
    report = measure_prompts(rows, PromptMetricModels(clip=Clip.load(clip_folder)), resamples=0)

    model, tokenizer = CLIPModel.from_pretrained(clip_folder), Clip.load(clip_folder).tokenizer
    squeezed = [Image.open(one.crop).resize((32, 32), Image.Resampling.BICUBIC) for one in rows]
    pixels = np.stack([np.asarray(one, np.float32) for one in squeezed]) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    tokens = tokenizer(["An image of a red cat"], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        made = model(**tokens, pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2).float())
        expected = (made.logits_per_image / model.logit_scale.exp()).mean()
    assert report["clipscore"] == pytest.approx(float(expected), abs=1e-5)
