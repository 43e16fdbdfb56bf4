"""InpaintingDataset: published items; choices that follow from seed, name and epoch alone; the manifest."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from inpainting.data.datasets import InpaintingDataset
from inpainting.data.ops import BuildSettings, build_paintings
from inpainting.data.paintings import MANIFEST, MaskManifest, PaintingOptions
from inpainting.tokens import plan_tokens
from ldm.images import read_image, write_mask
from tests.inpainting.painting_set import REGIONS, PaintingSet, tree, write_set
from tiny.world import make_tokenizer

SIDE = 32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> PaintingSet:
    """The set with every annotated image in the test split, and a copy of it in train."""
    made = write_set(tmp_path_factory.mktemp("set"))
    for split in ("val", ",train"):
        made.table.write_text(
            made.table.read_text().replace(split, split.replace("val", "test").replace("train", "test"))
        )
    build_paintings(
        BuildSettings(made.images, made.annotations, made.captions, made.table, made.out, roots="rule")
    )
    for path in (made.images / "test").iterdir():
        (made.images / "train" / path.name).write_bytes(path.read_bytes())
    return made


@pytest.fixture
def copy(built: PaintingSet, tmp_path: Path) -> PaintingSet:
    """The same files, for tests that damage them."""
    for name, data in tree(built.root).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return PaintingSet(tmp_path)


def dataset(made: PaintingSet, **more: Any) -> InpaintingDataset:
    """more: options, and parameters of InpaintingDataset."""
    named = {field.name for field in fields(PaintingOptions)}
    options = {"resolution": SIDE, "drop_caption_probability": 0.0}
    options |= {name: value for name, value in more.items() if name in named}
    rest = {name: value for name, value in more.items() if name not in named}
    settings = PaintingOptions(made.out, **options)  # type: ignore[arg-type]
    return InpaintingDataset(settings, make_tokenizer(), **{"split": "test", "freestyle": True, **rest})


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_an_item_has_the_published_keys_and_meaning(built: PaintingSet) -> None:
    data = dataset(built, global_anns_path=built.annotations)
    assert data.stems == sorted(REGIONS)
    item = data[data.stems.index("gina_dancers")]
    assert set(item) == {
        "pixel_values", "masks", "masked_pixel_values", "input_ids", "gt_texts", "texts", "global_text",
        "freestyle_layout_mask", "freestyle_attention_mask", "image_stems", "all_masks",
    }  # fmt: skip
    assert item["pixel_values"].shape == (3, SIDE, SIDE)
    assert -1 <= item["pixel_values"].min() < item["pixel_values"].max() <= 1
    masks = torch.stack(item["all_masks"])
    assert masks.shape == (len(item["texts"]), 1, SIDE, SIDE)
    assert torch.equal(item["masks"], masks.amax(dim=0))
    hidden = item["masks"].expand(3, -1, -1) > 0
    assert (item["masked_pixel_values"][hidden] == 0).all()
    assert torch.equal(item["masked_pixel_values"][~hidden], item["pixel_values"][~hidden])
    assert item["image_stems"] == "gina_dancers"
    assert item["global_text"] == "It shows A woman dancing, a man's face, her dress"
    assert item["gt_texts"] == item["texts"]
    plan = plan_tokens(item["texts"], data.tokenizer)
    assert torch.equal(item["input_ids"], plan.input_ids[0])
    assert torch.equal(item["freestyle_attention_mask"], plan.token_region_ids)
    assert item["input_ids"].shape == item["freestyle_attention_mask"].shape == (77,)
    plain = dataset(built, freestyle=False, split="train")[0]
    assert set(plain) == {"pixel_values", "masks", "masked_pixel_values", "input_ids", "gt_texts", "texts"}


def test_regions_outside_the_crop_are_no_candidates(built: PaintingSet, copy: PaintingSet) -> None:
    # 160 x 50 pixels: the trees end at 0.25 of the width, the central square begins at 0.34.
    item = dataset(built)[sorted(REGIONS).index("emil_wide-river")]
    assert item["texts"] == ["thing 1 of emilwideriver"]
    for name in ("mask_0", "mask_1"):
        mask = np.zeros((50, 160), bool)
        mask[:, :20] = True
        write_mask(copy.out / f"masks/emil_wide-river/{name}.png", mask)
    data = dataset(copy)
    with pytest.raises(ValueError, match=r"emil_wide-river.jpg: no region lies in the central 32 pixel crop"):
        data[data.stems.index("emil_wide-river")]
    manifest = data.follow(copy.root / MANIFEST)
    assert "no region lies" in manifest.left_out["emil_wide-river"]
    assert data.stems == [stem for stem in sorted(REGIONS) if stem != "emil_wide-river"]


def test_items_depend_on_seed_name_and_epoch_alone(built: PaintingSet, copy: PaintingSet) -> None:
    def batches(made: PaintingSet, workers: int, size: int, **more: Any) -> list[dict[str, Any]]:
        data = dataset(made, **more)
        loader = DataLoader(data, size, num_workers=workers, collate_fn=data.collate_fn)
        return [
            {key: value[k] for key, value in batch.items()}
            for batch in loader
            for k in range(len(batch["texts"]))
        ]

    one = batches(built, workers=0, size=1)
    for other in (batches(built, workers=2, size=3), batches(built, workers=0, size=7)):
        assert equal(one, other)
    (copy.images / "test/anna-maria_bridge.jpg").unlink()  # fewer images: the others stay the same
    fewer = batches(copy, workers=0, size=2)
    assert equal(one[1:], fewer)
    seeds = {tuple(item["texts"][0] for item in batches(built, 0, 7, seed=seed)) for seed in range(8)}
    assert len(seeds) > 1


def test_epochs_differ_in_training_only(built: PaintingSet) -> None:
    def texts(split: str, epoch: int) -> list[list[str]]:
        data = dataset(built, split=split)
        data.set_epoch(epoch)
        return [data[index]["texts"] for index in range(len(data))]

    assert len({str(texts("train", epoch)) for epoch in range(6)}) > 1
    assert texts("train", 3) == texts("train", 3)
    assert texts("test", 0) == texts("test", 3)


def test_only_the_prompt_of_a_single_region_is_dropped(built: PaintingSet) -> None:
    always = dataset(built, drop_caption_probability=1.0, split="train")
    for index in range(len(always)):
        item = always[index]
        assert (item["texts"] == [""]) == (len(item["gt_texts"]) == 1)
        assert item["gt_texts"] != [""]
    data = dataset(built, drop_caption_probability=0.5, split="train")
    single = data.stems.index("carl_portrait")
    dropped = []
    for epoch in range(60):
        data.set_epoch(epoch)
        dropped.append(data[single]["texts"] == [""])
    assert 15 < sum(dropped) < 45


def test_batches(built: PaintingSet) -> None:
    data = dataset(built)
    batch = data.collate_fn([data[index] for index in range(4)])
    assert batch["freestyle_layout_mask"].dtype == torch.int64
    assert batch["freestyle_layout_mask"].shape == (4, 6, SIDE, SIDE)
    assert [len(masks) for masks in batch["all_masks"]] == [len(texts) for texts in batch["texts"]]
    loose = dataset(built, max_concepts=None, masked_area_threshold=None, global_anns_path=built.annotations)
    batch = loose.collate_fn([loose[index] for index in range(len(loose))])
    assert batch["freestyle_layout_mask"].shape == (7, 4, SIDE, SIDE)
    assert len(batch["global_texts"]) == 7


def test_the_manifest_fixes_the_choice(built: PaintingSet, tmp_path: Path) -> None:
    path = tmp_path / "preds" / MANIFEST
    first = dataset(built)
    chosen = first.follow(path)
    before = path.read_bytes()
    assert list(chosen.items) == first.stems
    second = dataset(built)
    assert second.follow(path) == chosen == MaskManifest.read(path)
    assert path.read_bytes() == before
    for index, stem in enumerate(second.stems):
        assert equal(first[index], second[index])
        assert len(second[index]["texts"]) == len(chosen.items[stem])
        assert equal(first[index], dataset(built)[index])  # the record says what the rules choose
    with pytest.raises(ValueError, match="was written with seed 42, the settings say 7"):
        dataset(built, seed=7).follow(path)
    with pytest.raises(ValueError, match="was written with max_concepts 5, the settings say 3"):
        dataset(built, max_concepts=3).follow(path)
    path.write_text('{"items": {}}')
    with pytest.raises(ValueError, match=r"masks.json is no record of chosen masks"):
        dataset(built).follow(path)


def test_generated_prompts_replace_the_captions(built: PaintingSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts_dir: there is no folder .*none"):
        dataset(built, texts_dir=tmp_path / "none")
    data = dataset(built, texts_dir=tmp_path)
    plain = dataset(built)
    index = data.stems.index("gina_dancers")
    count = len(plain[index]["texts"])
    path = tmp_path / "gina_dancers.json"
    with pytest.raises(ValueError, match=r"gina_dancers.json does not exist"):
        data[index]
    path.write_text(json.dumps([f"new prompt {k}" for k in range(count + 1)]))
    with pytest.raises(ValueError, match=f"has {count + 1} prompts, its image {count} masked regions"):
        data[index]
    path.write_text(json.dumps([f"new prompt {k}" for k in range(count)]))
    item = data[index]
    assert item["texts"] == [f"new prompt {k}" for k in range(count)]
    assert item["gt_texts"] == plain[index]["gt_texts"]
    assert plain[index]["texts"] != item["texts"]


def test_damage_is_named_and_left_out(
    copy: PaintingSet, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (copy.out / "entities/carl_portrait/annotations.json").write_text('{"mask_0": {"concept": 3}}')
    (copy.out / "masks/hugo_village/mask_0.png").write_bytes(b"no image")
    write_mask(copy.out / "masks/dora_still-life/mask_1.png", np.ones((5, 5), bool))
    with caplog.at_level(logging.WARNING):
        data = dataset(copy)
    assert "carl_portrait" not in data.stems
    assert "carl_portrait/annotations.json: mask_0 has no text `concept`" in caplog.text
    manifest = data.follow(tmp_path / "m" / MANIFEST)
    assert set(manifest.left_out) == {"carl_portrait", "hugo_village", "dora_still-life"}
    assert "its image is 80 x 64" in manifest.left_out["dora_still-life"]
    assert all(data[index]["texts"] for index in range(len(data)))

    train = dataset(copy, split="train")
    stems = train.stems
    item = train[stems.index("dora_still-life")]  # the next image stands in for it
    assert item["gt_texts"] == train[stems.index("emil_wide-river")]["gt_texts"]
    assert train[stems.index("hugo_village")]["gt_texts"] == train[0]["gt_texts"]
    assert set(train.left_out) == {"carl_portrait", "dora_still-life", "hugo_village"}


def test_a_region_without_a_caption_is_no_candidate(copy: PaintingSet) -> None:
    path = copy.out / "entities/gina_dancers/annotations.json"
    copy.edit(path, lambda document: document["mask_0"].pop("caption"))
    copy.edit(copy.out / "entities/hugo_village/annotations.json", lambda d: d["mask_0"].pop("caption"))
    data = dataset(copy)
    assert "has no captions; `python -m inpainting.data.ops llava-" in data.left_out["hugo_village"]
    texts = data[data.stems.index("gina_dancers")]["texts"]
    assert sorted(texts) == ["thing 1 of ginadancers", "thing 2 of ginadancers"]


def test_options_out_of_range_are_refused(built: PaintingSet) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("max_concepts must be", {"max_concepts": 11}),
        ("no folder .*images/all; `python -m inpainting.data.ops build` makes", {"split": "all"}),
        ("drop_caption_probability must be", {"drop_caption_probability": 1.5}),
        ("no annotated image in the split val", {"split": "val"}),
    ]
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            dataset(built, **options)


def test_the_real_slice(test_data: Path) -> None:
    folder = test_data / "data/paintings/processed"
    data = InpaintingDataset(PaintingOptions(folder), make_tokenizer(), "test", freestyle=True)
    assert len(data) == 5
    for index in range(5):
        item = data[index]
        assert item["pixel_values"].shape == (3, 512, 512)
        if len(item["texts"]) > 1:
            assert item["masks"].mean() <= 0.65
        assert all(mask.any() for mask in item["all_masks"])


def test_choices(built: PaintingSet) -> None:
    def chosen(seed: int, **rules: Any) -> tuple[str, ...]:
        data = dataset(built, **{"shuffle_concepts": False, "masked_area_threshold": None, **rules})
        painting = data.paintings[data.stems.index("gina_dancers")]
        size = read_image(painting.image).size
        return tuple(data.chosen(painting, size, np.random.default_rng(seed))[0])

    by_area = ("mask_0", "mask_2", "mask_1")
    assert chosen(0) == chosen(1, max_concepts=None) == by_area
    assert chosen(0, max_concepts=2) == by_area[:2]
    assert {chosen(seed, max_concepts=1) for seed in range(30)} == {(name,) for name in by_area}
    assert len({chosen(seed, shuffle_concepts=True) for seed in range(60)}) == 6
