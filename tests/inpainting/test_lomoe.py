"""LoMOE-Bench in its own layout becomes painting data, is painted, and measured outside of the masks too."""

import json

import numpy as np
import pytest
from PIL import Image

from inpainting.data.batches import LomoeSettings
from inpainting.data.steps.lomoe import build_lomoe
from inpainting.models.text_to_image.config import PaintingsConfig
from inpainting.models.text_to_image.evaluation.compute import numbers
from inpainting.models.text_to_image.evaluation.measure import Backbones, InpaintedImage, measure_images
from inpainting.models.text_to_image.test import build_app
from ldm.images import read_mask
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.inpainting.small_paintings import write_inpainter

PROMPTS = {"00": ["a red cube"], "01": ["a tabby cat", 'it\'s a "small" dog'], "02": ["one", "two", "three"]}
CONFIG = ROOT / "configs/inpainting/text_to_image/test/lomoe.yaml"


def quoted(words):
    return " ".join(json.dumps(word) for word in words)


@pytest.fixture
def bench(tmp_path):
    """Three items: a photograph, an image with two masks of which one is of another size, three masks."""
    folder, rows = tmp_path / "LoMOE-Bench", {}
    for name in ("images", "masks", "utils"):
        (folder / name).mkdir(parents=True)
    for name, prompts in PROMPTS.items():
        image = np.random.default_rng(int(name)).integers(0, 256, (48, 64, 3), np.uint8)
        suffix = "jpg" if name == "00" else "png"
        Image.fromarray(image).save(folder / "images" / f"{name}.{suffix}")
        masks = []
        for number in range(len(prompts)):
            mask = np.zeros((48, 64), np.uint8)
            mask[10 + 12 * number : 20 + 12 * number, 12:30] = 255
            scale = 2 if (name, number) == ("01", 1) else 1
            masks.append(f"masks/{name}_{number}.png")
            Image.fromarray(mask.repeat(scale, 0).repeat(scale, 1)).save(folder / masks[-1])
        rows[name] = {"image_path": f"images/{name}.{suffix}", "mask_path": quoted(masks)}
        rows[name] |= {"fg_prompt": quoted(prompts), "source_prompt": quoted(["a thing"] * len(prompts))}
    (folder / "LoMOE.json").write_text(json.dumps(rows))
    (folder / "utils/target_prompts.txt").write_text("A red cube.\nA cat and a dog.\nThree.\n")
    return folder


def test_every_item_becomes_a_test_image_with_masks_and_prompts(bench, tmp_path):
    build_lomoe(LomoeSettings(bench, tmp_path / "out"))
    out = tmp_path / "out"
    assert {path.name for path in (out / "images/test").iterdir()} == {"00.jpg", "01.png", "02.png"}
    assert (out / "images/test/00.jpg").read_bytes() == (bench / "images/00.jpg").read_bytes()
    for name, prompts in PROMPTS.items():
        entries = json.loads((out / f"entities/{name}/annotations.json").read_text())
        assert [entry["caption"] for entry in entries.values()] == prompts
        masks = [read_mask(out / f"masks/{name}/mask_{number}.png") for number in range(len(prompts))]
        assert [mask.shape for mask in masks] == [(48, 64)] * len(prompts)
        assert [int(mask.sum()) for mask in masks] == [180] * len(prompts)
    described = json.loads((out / "descriptions.json").read_text())
    assert described["01.png"] == {"description": "Answer: A cat and a dog."}


def test_without_target_prompts_there_are_no_descriptions(bench, tmp_path):
    (bench / "utils/target_prompts.txt").unlink()
    build_lomoe(LomoeSettings(bench, tmp_path / "out"))
    assert not (tmp_path / "out/descriptions.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fg_prompt": quoted(["one"])}, "LoMOE.json: 01: 2 masks and 1 prompts"),
        ({"mask_path": "", "fg_prompt": ""}, "LoMOE.json: 01: 0 masks and 0 prompts"),
        ({"mask_path": '"masks/a.png'}, "LoMOE.json: 01: No closing quotation"),
        ({"mask_path": quoted(["masks/none.png"] * 2)}, "masks/none.png does not exist"),
        ({"image_path": "images/none.png"}, "images/none.png does not exist"),
        ({"image_path": "images/01.txt"}, "'01.txt' is not the name of an image file"),
        ({"fg_prompt": None}, "LoMOE.json: 01: can only concatenate"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(change, message, bench, tmp_path):
    rows = json.loads((bench / "LoMOE.json").read_text())
    rows["01"] |= change
    (bench / "LoMOE.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        build_lomoe(LomoeSettings(bench, tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} <= {"LoMOE-Bench", ".out.lock"}


def test_an_id_that_leaves_the_folder_is_refused(bench, tmp_path):
    rows = json.loads((bench / "LoMOE.json").read_text())
    (bench / "LoMOE.json").write_text(json.dumps({"../../x": rows["01"]}))
    with pytest.raises(ValueError, match="is not the name of an image file"):
        build_lomoe(LomoeSettings(bench, tmp_path / "out"))


def test_its_settings_keep_every_region_and_what_is_outside():
    config = load_config(PaintingsConfig, CONFIG)
    assert (config.data.max_concepts, config.data.masked_area_threshold) == (None, None)
    assert config.data.shuffle_concepts is False
    assert config.paint.paste_back is True
    assert config.paint.rca is True


def test_it_is_painted_and_measured(bench, tmp_path):
    build_lomoe(LomoeSettings(bench, tmp_path / "data"))
    write_inpainter(tmp_path / "model")
    places = {"output_dir": "out", "pretrained": "model", "data.data_dir": "data"}
    networks = ("inception", "squeezenet", "clip", "clip_iqa")
    places |= dict.fromkeys([f"backbones.{name}" for name in networks], "none")
    keys = [f"{key}={tmp_path / name}" for key, name in places.items()]
    keys += ["data.resolution=32", "paint.steps=1", "workers=1", "resamples=0", "fid_resamples=0"]
    assert run_app(build_app, ["generate", "--config-path", str(CONFIG), *keys]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"00.png", "01.png", "02.png"}
    assert run_app(build_app, ["compute", "--config-path", str(CONFIG), *keys]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (found["images"], found["regions"]) == (3, 6)
    assert found["masked_regions_only"]["psnr"]["value"] < 40
    assert found["outside_of_masks"]["ssim"]["value"] > 0.8
    assert found["outside_of_masks"]["psnr"]["value"] > found["masked_regions_only"]["psnr"]["value"] + 20


def test_outside_numbers_count_the_pixels_of_no_mask():
    truth = np.zeros((20, 20, 3), np.uint8)
    result, mask = truth.copy(), np.zeros((20, 20), bool)
    mask[:10] = True
    result[:10] = 200  # wrong inside only
    result[15, :5] = 10  # and in five pixels outside
    whole = np.ones((20, 20), bool)
    images = [
        InpaintedImage(name, truth, result, [each], ["a"]) for name, each in (("a", mask), ("b", whole))
    ]
    rows = measure_images(images, Backbones(), "cpu")
    table = numbers(rows, "outside_", 0, 0, 0)
    assert table["psnr"]["value"] == pytest.approx(10 * np.log10(255**2 / (5 * 100 / 200)), abs=1e-3)
    assert table["ssim"]["value"] < 1
    assert numbers(rows[1:], "outside_", 0, 0, 0) == {}  # where everything is masked
