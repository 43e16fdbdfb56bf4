"""Captions: cleaned as published, made by small networks, resumed, taken over, merged, put into folders."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.small_models import write_kosmos
from inpainting.data.batches import AnnotateSettings, CaptionSettings
from inpainting.data.ops import build_app
from inpainting.data.steps import describe as module
from inpainting.data.steps.describe import (
    annotate_images,
    caption_crops,
    caption_masks,
    continuation,
    describe_paintings,
    open_model,
)
from inpainting.data.steps.regions import RegionSettings, make_entities
from inpainting.data.steps.texts import (
    EntitySettings,
    FolderSettings,
    captions_to_annotations,
    captions_to_folder,
    clean_caption,
    read_captions,
)
from inpainting.prompts import CAPTION_PROMPT, CAPTION_START, KOSMOS_PROMPT, discover_prompt
from ldm.settings.cli import run_app
from tests.inpainting.painting_set import REGIONS, PaintingSet, killed, tree, write_set
from tests.ldm.small_mllm import llama_like, small_folder


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder("llava_next", tmp_path_factory.mktemp("llava_next"))


@pytest.fixture
def made(tmp_path: Path) -> PaintingSet:
    made = write_set(tmp_path)
    make_entities(
        RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "entities", workers=2)
    )
    return made


def caption(
    made: PaintingSet, out: Path, batch: int = 4, model: str = "model", process: int = 0, processes: int = 1
) -> Path:
    settings = CaptionSettings(made.out / "entities", model, batch, 5, out)
    return caption_masks(replace(settings, process_id=process, num_processes=processes))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captions from arithmetic instead of a network, for tests of bookkeeping; returns the batch sizes."""
    sizes: list[int] = []

    def answer(mllm: object, crops: list[np.ndarray], concepts: list[str], limit: int) -> list[str]:
        sizes.append(len(crops))
        # A caption depends on its batch, as a network's does a little.
        return [
            f"{CAPTION_START} {name} {int(c.sum())} {len(crops)}."
            for c, name in zip(crops, concepts, strict=True)
        ]

    monkeypatch.setattr(module, "caption_crops", answer)
    monkeypatch.setattr(module, "open_model", lambda *_, **__: None)
    return sizes


def test_a_caption_is_what_follows_the_question(llava_next: Path) -> None:
    tokenizer = open_model(str(llava_next)).processor.tokenizer
    question = CAPTION_PROMPT.format(concept="a dog").replace("<image>", "")
    for answer in (" the red cube behind the sofa.", ", output the box."):
        ids = torch.tensor(tokenizer(question + answer)["input_ids"])
        asked = len(tokenizer(question)["input_ids"])
        assert ids[:asked].tolist() == tokenizer(question)["input_ids"]
        published = tokenizer.decode(ids, skip_special_tokens=True).partition("ASSISTANT: ")[2]
        assert CAPTION_START + continuation(tokenizer, ids, asked) == published == CAPTION_START + answer


def test_prompts_are_those_of_the_released_models() -> None:
    assert CAPTION_PROMPT.format(concept="a dog") == (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
        "USER: <image>\nWhat are the details of this image containing a dog in a short sentence? "
        "Ignore the painting style. ASSISTANT: The image shows"
    )
    assert KOSMOS_PROMPT == "<grounding>Question: What are the details of this painting? Answer:"
    assert discover_prompt(["red", "blue"]).endswith(
        "USER: <image>\nDiscover and describe the objects hidden behind the masks of the colors: "
        "red, blue. ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("The image shows a Dog\nwith (big) ears.", "a dog with big ears"),
        ("The image shows a dog..", "a dog."),
        ("The image shows a collage of two dogs.", "two dogs"),
        # The first word in the fixed list counts, not the first in the text.
        ("The image shows a collage including a cat, showing a dog.", "a dog"),
        ("The image shows a collage featuring a collage of hats.", "hats"),
        ("a man, a wom\u00e1n! 50% of #1", "a man, a wom\u00e1n! 50 of 1"),
        ("", ""),
        (".", ""),
    ],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


def test_the_real_slice_gives_the_same_captions(test_data: Path) -> None:
    paintings = test_data / "data/paintings"
    raw = read_captions(paintings / "raw/llava.json")
    assert "steps" not in raw
    for stem, captions in raw.items():
        wanted = json.loads((paintings / "processed/entities" / stem / "annotations.json").read_text())
        assert {name: clean_caption(text) for name, text in captions.items()} == {
            name: entry["caption"] for name, entry in wanted.items()
        }


def test_a_real_network_captions_the_whole_set(made: PaintingSet, llava_next: Path) -> None:
    final = caption(made, made.root, 4, str(llava_next))
    assert final == made.root / "backup_0_final.json"
    captions = read_captions(final)
    assert {stem: len(found) for stem, found in captions.items()} == REGIONS
    assert json.loads(final.read_text())["steps"] == 3  # 12 crops, the last batch included
    for found in captions.values():
        assert all(text.startswith(CAPTION_START) for text in found.values())
    assert read_captions(made.root / "llava.json") == captions

    crop_u8 = module.read_image(made.out / "entities/gina_dancers/mask_2.png").rgb_u8
    alone = caption_crops(open_model(str(llava_next)), [crop_u8], ["her dress"], 5)
    assert alone[0] == captions["gina_dancers"]["mask_2"]  # padding on the left does not change an answer


@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_and_run_again_is_the_same(made: PaintingSet, fake: list[int], count: int) -> None:
    caption(made, made.root / "whole", 5)
    killed(lambda: caption(made, made.root / "cut", 5), "append", count)
    fake.clear()
    caption(made, made.root / "cut", 5)
    assert fake == [5, 5, 2][count - 1 :]
    assert tree(made.root / "cut") == tree(made.root / "whole")
    fake.clear()
    caption(made, made.root / "cut", 5)
    assert fake == []


def test_processes_share_the_images_and_the_last_merges(made: PaintingSet, fake: list[int]) -> None:
    caption(made, made.root, 2, process=1, processes=2)
    assert set(read_captions(made.root / "backup_1_final.json")) == set(sorted(REGIONS)[1::2])
    assert not (made.root / "llava.json").exists()
    caption(made, made.root, 2, process=0, processes=2)
    merged = read_captions(made.root / "llava.json")
    assert list(merged) == sorted(REGIONS)
    assert read_captions(made.root) == merged  # a folder of backups is merged in reading


def test_backups_of_the_published_command_are_taken_over(made: PaintingSet, fake: list[int]) -> None:
    old = {
        "anna-maria_bridge": {"mask_0": "The image shows an old caption.", "mask_1": "tle boats on water."},
        "unknown_image": {"mask_0": "The image shows something else."},
        "steps": 100,
    }
    (made.root / "backup_0.json").write_text(json.dumps(old))
    caption(made, made.root)
    captions = read_captions(made.root / "llava.json")
    assert captions["anna-maria_bridge"]["mask_0"] == "The image shows an old caption."
    # The published command cut the beginning off the last captions; such a one is made again.
    assert captions["anna-maria_bridge"]["mask_1"].startswith("The image shows two boats")
    assert "unknown_image" not in captions
    assert sum(fake) == sum(REGIONS.values()) - 1


def test_another_number_of_processes_continues(made: PaintingSet, fake: list[int]) -> None:
    killed(lambda: caption(made, made.root, 1), "append", 6)
    for index in range(2):
        caption(made, made.root, 1, process=index, processes=2)
    assert len(fake) == sum(REGIONS.values()) - 5
    assert {stem: len(found) for stem, found in read_captions(made.root / "llava.json").items()} == REGIONS


def test_another_model_does_not_continue(made: PaintingSet, fake: list[int]) -> None:
    caption(made, made.root, model="one")
    with pytest.raises(ValueError, match="was begun with model 'one', now 'two'"):
        caption(made, made.root, model="two")


def test_a_damaged_crop_is_left_out_and_tried_again(made: PaintingSet, fake: list[int]) -> None:
    path = made.out / "entities/hugo_village/mask_0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    (made.out / "entities/carl_portrait/annotations.json").write_text("{")
    caption(made, made.root)
    captions = read_captions(made.root / "llava.json")
    assert set(REGIONS) - set(captions) == {"hugo_village", "carl_portrait"}
    path.write_bytes(whole)
    fake.clear()
    caption(made, made.root)
    assert fake == [1]
    assert "hugo_village" in read_captions(made.root / "llava.json")


def test_captions_go_into_the_folders(made: PaintingSet, caplog: pytest.LogCaptureFixture) -> None:
    entities = made.out / "entities"

    def damage(document: dict) -> None:
        document["steps"] = 7
        document["no_folder"] = {"mask_0": "The image shows nothing."}
        document["carl_portrait"] = "text"
        del document["gina_dancers"]["mask_1"]
        document["hugo_village"]["mask_9"] = "The image shows too much."

    made.edit(made.captions, damage)
    first = captions_to_folder(FolderSettings(made.captions, entities))
    assert set(first.left_out) == {"no_folder", "carl_portrait"}
    with caplog.at_level(logging.WARNING):
        second = captions_to_annotations(EntitySettings(entities))
    assert set(second.left_out) == {"carl_portrait", "gina_dancers", "hugo_village"}
    assert "mask_1" in second.left_out["gina_dancers"]
    assert "mask_9" in second.left_out["hugo_village"]
    found = json.loads((entities / "anna-maria_bridge/annotations.json").read_text())
    assert found["mask_1"] == {"concept": "two boats", "caption": "thing 1 of annamariabridge"}
    # A second file adds to what is there.
    extra = made.root / "backup_1_final.json"
    extra.write_text(json.dumps({"gina_dancers": {"mask_1": "The image shows a face."}, "steps": 1}))
    captions_to_folder(FolderSettings(extra, entities))
    names = set(json.loads((entities / "gina_dancers/llava.json").read_text()))
    assert names == {"mask_0", "mask_1", "mask_2"}


def test_a_damaged_annotation_is_set_aside(made: PaintingSet) -> None:
    entities = made.out / "entities"
    captions_to_folder(FolderSettings(made.captions, entities))
    path = entities / "hugo_village/annotations.json"
    path.write_text('{"mask_0": {"concept": ')
    journal = captions_to_annotations(EntitySettings(entities))
    assert "annotations.json.wrong" in journal.left_out["hugo_village"]
    assert not path.exists()
    make_entities(
        RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=1)
    )  # makes it again
    assert not captions_to_annotations(EntitySettings(entities)).left_out


def test_kosmos_describes_and_continues(made: PaintingSet, tmp_path: Path) -> None:
    model = write_kosmos(tmp_path / "kosmos", llama_like())
    out = tmp_path / "new/annotations.json"
    settings = AnnotateSettings(made.images, out, str(model), batch_size=3, max_new_tokens=6)
    assert not annotate_images(replace(settings, process_id=1, num_processes=2))
    assert annotate_images(replace(settings, process_id=0, num_processes=2))
    found = json.loads(out.read_text())
    assert list(found) == sorted(found)
    assert len(found) == 8
    assert all(entry["description"].startswith("Question: What are the details") for entry in found.values())
    cut = replace(settings, out=tmp_path / "cut/annotations.json")
    killed(lambda: annotate_images(cut), "append", 2)
    annotate_images(cut)
    whole = f"{tmp_path}/whole/annotations.json --batch-size 3 --max-new-tokens 6"
    argv = f"annotate-images --image-dir {made.images} --model-id {model} --out {whole}"
    assert run_app(build_app, argv.split()) == 0
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_kosmos_boxes_become_entities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = open_model(str(write_kosmos(tmp_path, llama_like())), "full")
    text = (
        "<image> </image><grounding> Question: What are the details of this painting? Answer: It shows"
        "<phrase> a dog</phrase><object><patch_index_0000><patch_index_0527></object> and"
        "<phrase> two men</phrase><object><patch_index_0033><patch_index_0066></delimiter_of_multi_objects/>"
        "<patch_index_0100><patch_index_0200></object>."
    )
    images = [np.zeros((20, 30, 3), np.uint8), np.full((30, 20, 3), 255, np.uint8)]
    assert len(describe_paintings(mllm, images, 4)) == 2
    monkeypatch.setattr(mllm.processor, "batch_decode", lambda *_, **__: [text])
    entry = describe_paintings(mllm, images[:1], 4)[0]
    description = "Question: What are the details of this painting? Answer: It shows a dog and two men."
    assert entry["description"] == description
    assert list(entry["entities"]) == ["a dog", "two men"]
    start, end = entry["entities"]["two men"]["startend"]
    assert description[start:end] == "two men"
    assert entry["entities"]["a dog"]["bboxes"] == [[0.5 / 32, 0.5 / 32, 15.5 / 32, 16.5 / 32]]
    assert len(entry["entities"]["two men"]["bboxes"]) == 2
    phrases = [("a cat", (0, 5), [(0.0, 0.0, 0.5, 0.5)]), ("a cat", (9, 14), [(0.5, 0.5, 1.0, 1.0)])]
    monkeypatch.setattr(mllm.processor, "post_process_generation", lambda _: ("x", phrases))
    twice = describe_paintings(mllm, images[:1], 4)[0]
    assert len(twice["entities"]["a cat"]["bboxes"]) == 2
