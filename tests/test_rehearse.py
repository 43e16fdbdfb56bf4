"""Folders of the rehearsal, at small sizes: each loads strictly, and works; its page and its watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.model import load_compositor
from inpainting.data.steps.describe import describe_paintings, open_model
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.models.text_to_image.load import load_inpainter
from ldm import checkpoints
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from ldm.experts.segment import sam_mask
from ldm.files import ROOT, read_json
from ldm.metrics.backbones import Lpips, load_inception
from ldm.metrics.clip import Clip
from ldm.mllm.llava_original import merge_into
from ldm.weight_files import open_weights
from llava_bifrost.locator import load_locator
from scripts import rehearse, rehearse_models
from scripts.rehearse_process import Watch

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**SMALL, "image_size": 56, "patch_size": 14}
SIZES: dict[str, Any] = {
    "compositor": NetworkConfig(
        size=(64, 64), block_channels=(32, 64), heads=(1, 2), attention=(True, False), layers_per_block=1,
        norm_groups=8, token_width=32, hint_channels=(8, 8, 8, 16), identity_width=32, identity_layers=2,
        identity_heads=2, identity_patch=56, identity_swiglu=False,
        autoencoder=AutoencoderConfig("kl", (32, 32, 32, 32), 1),
    ),
    "depth": {
        **SMALL, "image_size": 64, "patch_size": 16, "num_hidden_layers": 4, "fusion_hidden_size": 16,
        "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 16, 16],
    },
    "sam": {
        "vision_config": {
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "mlp_dim": 32, "window_size": 4, "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        "prompt_encoder_config": {
            "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    },
    "text": {"vocab_size": 5000, **SMALL},
    "clip": {
        "text_config": {"vocab_size": 5000, **SMALL}, "projection_dim": 16,
        "vision_config": {**SMALL, "image_size": 32, "patch_size": 8},
    },
    "kosmos": {
        "text_config": {
            "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "max_position_embeddings": 512,
        },
        "vision_config": {**SMALL, "image_size": 28, "patch_size": 14},
    },
    "llava": {
        "text_config": {"model_type": "llama", "vocab_size": 2016, "num_key_value_heads": 2, **SMALL},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
    },
    "grounding_dino": {
        "backbone_config": {
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4,
            "window_size": 4, "out_indices": [2, 3, 4],
        },
        "text_config": {**SMALL, "vocab_size": 2000}, "num_queries": 8, "d_model": 32, "encoder_layers": 1,
        "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_layers": 2, "decoder_ffn_dim": 16,
        "decoder_attention_heads": 2,
    },
    "words": 2000, "rank": {"rca": 4, "locator": 4, "multimask": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse_models, "SIZES", SIZES)


def test_sizes_have_the_names_of_the_full_ones() -> None:
    full = {name for row in rehearse.read_plan()["rows"].values() for name in row["networks"].split()}
    assert all(hasattr(rehearse_models, f"make_{name}") for name in full)


def test_compositor_depth_and_sam(tmp_path: Path) -> None:
    for name in ("compositor", "depth", "sam"):
        getattr(rehearse_models, f"make_{name}")(tmp_path / name)
    model, _ = load_compositor(tmp_path / "compositor", torch.bfloat16)
    assert all(weight.isfinite().all() for weight in model.parameters())
    depth_01 = DepthEstimator.load(tmp_path / "depth").estimate(IMAGE)
    assert depth_01.shape == IMAGE.shape[:2]
    assert depth_01.std() > 0
    assert sam_mask(IMAGE, tmp_path / "sam", (0.2, 0.2, 0.8, 0.8)).shape == IMAGE.shape[:2]


def test_inpainter_with_its_lora(tmp_path: Path) -> None:
    rehearse_models.make_inpainter(tmp_path / "inpainter")
    plain = load_inpainter(tmp_path / "inpainter", dtype=torch.float32).unet.state_dict()
    merged = load_inpainter(tmp_path / "inpainter", tmp_path / "rca", dtype=torch.float32).unet.state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    wanted = {name for name in plain if name.removesuffix(".weight").endswith(rehearse_models.ATTENTION)}
    assert changed == {name for name in wanted if name.endswith("weight")}
    assert changed


def test_judges(tmp_path: Path) -> None:
    rehearse_models.make_judges(tmp_path)
    assert Clip.load(tmp_path / "clip").images([IMAGE]).shape == (1, 16)
    network = load_inception(tmp_path / "inception/model.safetensors")
    assert torch.equal(network.Conv2d_1a_3x3.bn.running_var, torch.ones(32))  # a buffer, as it was made
    assert len(Lpips.load(tmp_path / "squeezenet/model.safetensors").heads) == 7


def test_kosmos_and_detector(tmp_path: Path) -> None:
    rehearse_models.make_kosmos(tmp_path / "kosmos")
    assert describe_paintings(open_model(str(tmp_path / "kosmos"), "full"), [IMAGE], 4)[0]["description"]
    rehearse_models.make_grounding_dino(tmp_path / "dino")
    detector = Detector.load(tmp_path / "dino", least_score=0.0)
    tokens = detector.processor.tokenizer("table.")["input_ids"]
    assert (tokens[0], tokens[-2:]) == (101, [1012, 102])  # as its classes look for them
    assert detector.find_all(IMAGE, "table")


def test_locator_with_the_released_kind_of_adapter(tmp_path: Path) -> None:
    rehearse_models.make_llava(tmp_path / "llava")
    report = merge_into(tmp_path / "llava", tmp_path / "adapter", tmp_path / "locator")
    assert report["lora_pairs_merged"] == 2 * len(rehearse_models.LAYERS)
    assert len(report["weights_replaced"]) == 4
    assert len(load_locator(tmp_path / "locator").locate(IMAGE, "Place the cup on the table")) == 1


def test_prompt_writer_with_its_adapter(tmp_path: Path) -> None:
    rehearse_models.make_llava_next(tmp_path / "next")
    writer = PromptWriter.load(tmp_path / "next", tmp_path / "multimask", precision="full")
    pairs = [name for name, _ in writer.mllm.model.named_parameters() if "lora_A" in name]
    assert len(pairs) == 2 * len(rehearse_models.LAYERS)
    assert len(writer.mllm.processor.tokenizer) == 2002


def test_shards_hold_all_weights_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checkpoints.empty_parameters():
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    rehearse_models.write_network(model, tmp_path / "one")
    monkeypatch.setattr(rehearse_models, "SHARD", 150)
    rehearse_models.write_network(model, tmp_path / "many")
    one, many = open_weights(tmp_path / "one"), open_weights(tmp_path / "many")
    assert one.shapes == many.shapes
    assert all(torch.equal(one.read(key), many.read(key)) for key in one.shapes)
    places = read_json(tmp_path / "many/model.safetensors.index.json")["weight_map"]
    files = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert len(files) > 2
    assert {*places.values()} == files
    assert places.keys() == one.shapes.keys()


def test_a_watch_counts_networks_and_not_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.rehearse_process.register_module_forward_pre_hook", lambda hook: None)
    monkeypatch.setattr("scripts.rehearse_process.register_module_forward_hook", lambda hook, **_: None)
    watch, part = Watch(), nn.Linear(2, 2)
    whole = watch.timed(lambda: nn.Sequential(part).to(torch.bfloat16))()
    tokens = {"input_ids": torch.zeros(1, 7)}
    for _ in range(3):
        watch.inside += [0.0, 0.0]
        watch.end(part, (), {}, None)
        watch.end(whole, (), tokens, None)
    row = watch.report()["networks"]
    assert row.keys() == {"Sequential"}
    seen = row["Sequential"]
    assert (seen["calls"], seen["tokens"], seen["types"]) == (3, [7, 7], ["bfloat16"])
    assert len(seen["load_s"]) == 1


def test_unknown_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown: nothing; there are image, sam, detect"):
        rehearse.rehearse(["nothing"], work=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_is_that_of_the_numbers() -> None:
    body = json.loads((ROOT / rehearse.NUMBERS).read_text())
    assert (ROOT / rehearse.PAGE).read_text() == rehearse.page_of(body)
    assert {row["result"] for row in body["rows"].values()} == {"done"}
    assert body["rows"].keys() == {
        name for row in rehearse.read_plan()["rows"].values() for name in row["commands"]
    }
