"""Names of weights: our map, that of diffusers, and names and shapes of the released files agree."""

import json
import re

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model, DPTForDepthEstimation

from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.convert.convert import DPT_LARGE
from cldm.convert.keys import original_pieces, vit_name
from cldm.convert.plan import UNET, VAE, empty_networks, plan_compositor, plan_single
from ldm.checkpoints import load_part, save_part, stored_names
from tests.cldm.released import MANIFESTS, MINI, expand, manifest, named_weight, original_shapes, shapes_only
from tests.conftest import ROOT

COUNTS = {"bifrost": 2196, "anydoor": 1856, "sd21": 1241, "dinov2_vitg14": 567}
PARAMETERS = {"unet": 865_910_724, "control_detail": 364_228_384, "control_depth": 364_228_240,
              "vae": 83_653_863, "image_encoder": 1_136_480_768 - 1113 * 1536}  # fmt: skip

FOUR_LEVELS = NetworkConfig(
    block_channels=(32, 64, 64, 64), layers_per_block=1, norm_groups=8, heads=(2, 4, 4, 4), token_width=16,
    hint_channels=(4, 8, 8, 16), identity_width=48, identity_layers=1, identity_heads=4,
    autoencoder=AutoencoderConfig("kl", (32, 32, 64, 64), 1, 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def full_size():
    return empty_networks(NetworkConfig())


def mapped(model, weights):
    """Our map, forwards."""
    ours = model.state_dict()
    pieces = original_pieces(model)
    return {
        key: weights[piece.key].chunk(piece.of)[piece.index].reshape(ours[key].shape)
        for key, piece in pieces.items()
    }


@pytest.mark.parametrize(
    ("part", "network"),
    [(part, FOUR_LEVELS) for part in ("unet", "control_detail", "control_depth", "vae")]
    + [(part, MINI) for part in ("unet", "vae")],
)
def test_our_map_is_that_of_diffusers(part, network):
    model = empty_networks(network)[part]
    weights = {key: named_weight(key, shape) for key, shape in original_shapes(model).items()}
    if part == "unet":
        theirs = convert_ldm_unet_checkpoint(
            {UNET + key: value for key, value in weights.items()}, model.config
        )
    elif part == "vae":
        theirs = convert_ldm_vae_checkpoint(
            {VAE + key: value for key, value in weights.items()}, model.config
        )
    else:
        theirs = convert_controlnet_checkpoint(dict(weights), model.config)
    ours = mapped(model, weights)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize(("part", "count"), [("clip_text", 372), ("dinov2", 727), ("dpt", 462)])
def test_saved_names_are_those_of_the_hub(part: str, count: int, full_size) -> None:
    """At the published sizes: names that transformers 4.57 writes and reads."""
    text = CLIPTextConfig(hidden_size=1024, num_hidden_layers=23, num_attention_heads=16)
    with init_empty_weights(include_buffers=False):
        model = {
            "clip_text": lambda: CLIPTextModel(text),
            "dinov2": lambda: full_size["image_encoder"],
            "dpt": lambda: DPTForDepthEstimation(DPT_LARGE),
        }[part]()
    patterns = (MANIFESTS / f"hub_{part}.txt").read_text().split()
    wanted = {key for pattern in patterns for key in expand(pattern)}
    assert len(wanted) == count
    names = stored_names(model)
    assert names.keys() == wanted
    assert sorted(key for keys in names.values() for key in keys) == sorted(model.state_dict())


@pytest.mark.parametrize("part", ["unet", "control_detail", "vae"])
def test_diffusers_names_stay(part: str, full_size) -> None:
    assert stored_names(full_size[part]) == {key: [key] for key in full_size[part].state_dict()}


@pytest.mark.parametrize(
    ("folder", "start", "absent"),
    [
        ("inpainter/text_encoder", "text_model.", r"(?!text_model\.).*"),
        ("compositor/image_encoder", "encoder.layer.0.attention.attention.query", r".*\.[qkvo]_proj\..*"),
        ("locator", "language_model.model.layers.0", r"model\..*"),
        ("prompter", "language_model.model.layers.0", r"model\..*"),
    ],
)
def test_the_small_networks_have_names_of_the_hub(folder: str, start: str, absent: str) -> None:
    with safe_open(ROOT / "assets/tiny" / folder / "model.safetensors", "pt") as file:
        keys = list(file.keys())
    assert any(key.startswith(start) for key in keys)
    assert [key for key in keys if re.fullmatch(absent, key)] == []


@pytest.mark.parametrize("names", ["hub", "model"])
@pytest.mark.parametrize("swiglu", [False, True])
def test_a_part_is_read_under_either_names(names: str, swiglu: bool, tmp_path) -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                          patch_size=14, use_swiglu_ffn=swiglu)  # fmt: skip
    for model in (Dinov2Model(config), CLIPTextModel(CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ))):  # fmt: skip
        save_part(model, tmp_path, torch.float32)
        weights = model.state_dict()
        stored = load_file(tmp_path / "model.safetensors")
        assert stored.keys() == stored_names(model).keys() != weights.keys()
        if names == "model":
            save_file({**weights, "embeddings.position_ids": torch.arange(4)}, tmp_path / "model.safetensors")
        loaded = load_part(type(model), tmp_path).state_dict()
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
        (tmp_path / "model.safetensors").unlink()
        torch.save(stored, tmp_path / "pytorch_model.bin")
        assert all(torch.equal(value, weights[key])
                   for key, value in load_part(type(model), tmp_path).state_dict().items())  # fmt: skip
        (tmp_path / "pytorch_model.bin").unlink()


@pytest.mark.parametrize("part", ["unet", "control_detail", "control_depth", "vae", "image_encoder"])
def test_no_two_weights_share_a_place(part, full_size):
    pieces = original_pieces(full_size[part])
    assert len(set(pieces.values())) == len(pieces)
    whole = {piece.key: set() for piece in pieces.values()}
    for piece in pieces.values():
        whole[piece.key].add((piece.index, piece.of))
    for key, chunks in whole.items():
        of = next(iter(chunks))[1]
        assert chunks == {(index, of) for index in range(of)}, key


def test_parameter_counts_of_the_published_networks(full_size):
    counts = {
        part: sum(value.numel() for value in full_size[part].state_dict().values()) for part in PARAMETERS
    }
    assert counts == PARAMETERS


@pytest.mark.parametrize("released", sorted(COUNTS))
def test_compact_manifest_is_the_whole_file(released, request):
    shapes = manifest(released)
    assert len(shapes) == COUNTS[released]
    folder = request.getfixturevalue("test_data") / "spec/manifests"
    stored = json.loads((folder / f"{released}.json").read_text())
    assert shapes == {key: tuple(shape) for key, (shape, _) in stored.items()}


@pytest.mark.parametrize("kind", ["bifrost", "anydoor", "sd21"])
def test_every_key_of_a_released_file_has_a_place(kind, full_size):
    """At full size: each key is used or named as unused, each of our weights is filled, all shapes fit."""
    shapes = manifest(kind)
    encoder = shapes_only(manifest("dinov2_vitg14")) if kind == "sd21" else None
    plan = plan_compositor(kind, shapes_only(shapes), full_size, encoder)
    used = {origin.key for part in plan.parts.values() for origin in part.values() if origin.source}
    unused = {key for keys in plan.unused.values() for key in keys}
    assert set(shapes) <= used | unused
    assert not used & unused
    for part, model in full_size.items():
        wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        assert {key: origin.shape for key, origin in plan.parts[part].items()} == wanted


def test_what_is_unused_and_what_starts_fresh(full_size):
    def counted(kind):
        encoder = shapes_only(manifest("dinov2_vitg14")) if kind == "sd21" else None
        plan = plan_compositor(kind, shapes_only(manifest(kind)), full_size, encoder)
        fresh = {
            name: sum(origin.how == "fresh" for origin in part.values()) for name, part in plan.parts.items()
        }
        return [len(keys) for keys in plan.unused.values()], {
            name: count for name, count in fresh.items() if count
        }

    assert counted("bifrost") == ([13, 4], {})
    assert counted("anydoor") == ([13, 2], {"control_depth": 42})
    assert counted("sd21") == ([13, 294], {"control_detail": 42, "control_depth": 42, "projector": 2})


@pytest.mark.parametrize("control", ["control_detail", "control_depth"])
def test_a_copied_branch_takes_the_encoder_of_the_unet(control, full_size):
    plan = plan_compositor("sd21", shapes_only(manifest("sd21")), full_size,
                           shapes_only(manifest("dinov2_vitg14")))  # fmt: skip
    copied = {origin.key for origin in plan.parts[control].values() if origin.how == "copy"}
    assert len(copied) == 296  # 298 encoder weights less the unused first convolution
    assert all(key.startswith((UNET + "input_blocks.", UNET + "middle_block.", UNET + "time_embed."))
               for key in copied)  # fmt: skip


def test_dinov2_file_fills_the_encoder(full_size):
    plan = plan_single(full_size["image_encoder"], shapes_only(manifest("dinov2_vitg14")))
    origins = plan.parts[""]
    assert len(origins) == 807
    assert not plan.unused
    assert [key for key, origin in origins.items() if origin.positions] == ["embeddings.position_embeddings"]


def test_older_transformers_spelling_is_understood():
    """A folder written by transformers 4: separate query, key, value, gate and up in one matrix."""
    model = empty_networks(MINI)["image_encoder"]
    old = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
           "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
           "mlp.down_proj": "mlp.weights_out"}  # fmt: skip
    shapes = {}
    for key, value in model.state_dict().items():
        name, (first, *rest) = key, value.shape
        for new, before in old.items():
            name = name.replace(new, before)
        if "up_proj" not in key:
            double = 2 if "gate_proj" in key else 1
            shapes[name.replace("gate_proj", "weights_in")] = (first * double, *rest)
    origins = plan_single(model, shapes_only(shapes)).parts[""]
    up = origins["encoder.layer.0.mlp.up_proj.weight"]
    assert (up.key, up.index, up.of) == ("encoder.layer.0.mlp.weights_in.weight", 1, 2)
    assert (
        origins["encoder.layer.1.attention.k_proj.bias"].key == "encoder.layer.1.attention.attention.key.bias"
    )
    assert vit_name("encoder.layer.3.attention.attention.key.bias") == vit_name(
        "encoder.layer.3.attention.k_proj.bias"
    )


def test_depth_network_map_is_one_to_one():
    with init_empty_weights(include_buffers=False):
        model = DPTForDepthEstimation(DPT_LARGE)
    pieces = original_pieces(model)
    assert len(set(pieces.values())) == len(pieces) == 462
    names = {piece.key for piece in pieces.values()}
    for known in (  # names in the released file, one of each group
        "pretrained.model.blocks.23.attn.qkv.weight",
        "pretrained.model.pos_embed",
        "pretrained.act_postprocess1.0.project.0.weight",
        "pretrained.act_postprocess4.4.weight",
        "scratch.layer4_rn.weight",
        "scratch.refinenet4.resConfUnit1.conv1.weight",
        "scratch.refinenet1.out_conv.bias",
        "scratch.output_conv.4.weight",
    ):
        assert known in names
    file = original_shapes(model) | {"pretrained.model.head.weight": (1000, 1024)}
    plan = plan_single(model, shapes_only(file))
    assert [len(keys) for keys in plan.unused.values()] == [1]
