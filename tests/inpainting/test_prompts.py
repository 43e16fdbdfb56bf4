"""The prompt writer: colours, answers, prompt files that images follow, the released adapter's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from inpainting.models.text_to_image.evaluation.generate import fill_paintings
from inpainting.models.text_to_image.test import build_app
from inpainting.prompts import COLORS, paint_masks, read_prompt
from ldm.mllm.model import load_mllm
from ldm.mllm.training import load_adapter
from ldm.settings.cli import run_app
from tests.inpainting.small_paintings import write_inpainter, write_paintings
from tests.inpainting.test_evaluation import CONFIGS, STEMS, config, images, small
from tests.ldm.small_mllm import small_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, data/ with 4 test images, writer/ an untrained LLaVA-NeXT."""
    folder = tmp_path_factory.mktemp("prompts")
    write_inpainter(folder / "model")
    write_paintings(folder / "data", {"test": 4})
    small_folder("llava_next", folder / "writer")
    return folder


def test_colours_and_answers_of_the_prompt_writer():
    large, small_one = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    small_one[2:4, 2:4] = True
    painted = paint_masks(np.zeros((8, 8, 3), np.uint8), [small_one, large], ["green", "red"])
    assert tuple(painted[3, 3]) == COLORS["green"]
    assert tuple(painted[0, 0]) == COLORS["red"]
    answer = "<blue>a tree</blue><green>a man</green><red> a dog </red><red>no</red>"
    assert [read_prompt(answer, one) for one in ("blue", "green", "red")] == ["a tree", "a man", "a dog"]
    assert read_prompt("<red>never ends", "red") == ""


def test_prompts_are_written_and_used(folder: Path, tmp_path: Path):
    """No prompt of an untrained model is empty; decoded as published it writes no tags. Images follow."""
    name, prompts = "sd_2_inp_rca_finetuned_gen", tmp_path / "prompts"
    changes = [f"llava_output_dir={prompts}", f"llava_model_id={folder / 'writer'}", "max_new_tokens=20"]
    options = ["generate-prompts", "--config-path", str(CONFIGS / f"{name}.yaml"), "--shard", "0/1"]
    free = ["llava_constrained=false", f"llava_output_dir={tmp_path / 'free'}", f"texts_dir={tmp_path}"]
    found = []
    for more in ([], free):
        assert run_app(build_app, [*options, *small(folder, tmp_path / "out"), *changes, *more]) == 0
        written = (tmp_path / "free" if more else prompts).glob("test_*.json")
        found.append({path.stem: json.loads(path.read_text()) for path in written})
    texts = found[0]
    assert [len(texts[stem]) for stem in STEMS] == [1, 2, 3, 1]
    assert all(text for one in texts.values() for text in one)
    assert found[1] == {stem: [""] * len(one) for stem, one in texts.items()}
    for stem, one in texts.items():
        (prompts / f"{stem}.json").write_text(json.dumps(["a red cube"] * len(one)))
    one = config(folder, tmp_path / "out", name, *changes, f"texts_dir={prompts}")
    fill_paintings(one)
    assert list(images(tmp_path / "out")) == STEMS
    manifest = json.loads((prompts / "masks.json").read_text())
    manifest["items"]["test_2"] = manifest["items"]["test_2"][::-1]
    (prompts / "masks.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="prompts written for other regions .* test_2"):
        fill_paintings(one)


def released(name: str) -> str:
    """A layer's name in the released file."""
    return name.replace("model.language_model.", "language_model.model.")


def test_the_released_adapter_s_names_are_understood(folder: Path, tmp_path: Path):
    """Adapter of a small model, renamed as the released one is; merged answers are equal."""
    model = load_mllm(folder / "writer").model
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    layers = [name for name in linear if "language_model" in name and "lm_head" not in name]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = "base"
    adapted.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    old = {released(key): value for key, value in load_file(file).items()}
    assert all("language_model.model.layers" in key for key in old)
    save_file(old, file)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings["target_modules"] = [released(one) for one in layers]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    again, plain = (load_mllm(folder / "writer").model for _ in range(2))
    again = load_adapter(again, tmp_path)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        logits = [one.eval()(input_ids=tokens).logits for one in (again, adapted, plain)]
    assert torch.allclose(logits[0], logits[1], atol=1e-6)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)
    file.unlink()
    torch.save(old, tmp_path / "adapter_model.bin")  # as peft wrote before 0.5
    pickled = load_adapter(load_mllm(folder / "writer").model, tmp_path)
    assert all(torch.equal(value, pickled.state_dict()[key]) for key, value in again.state_dict().items())
    save_file({**old, "base_model.model.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"1 unexpected"):
        load_adapter(load_mllm(folder / "writer").model, tmp_path)
