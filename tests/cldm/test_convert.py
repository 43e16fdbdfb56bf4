"""The converters on small released files: the folder loads, computes the same, and returns bit by bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cldm.config import CompositorSettings, ConvertSettings, ExportSettings
from cldm.convert.__main__ import build_app
from cldm.convert.convert import CONFIGS, POSITIONS, convert_compositor, convert_single
from cldm.convert.export import export, schedule_buffers
from cldm.convert.keys import original_pieces
from cldm.convert.plan import ENCODER, UNET, empty_networks
from cldm.model import Compositor, load_compositor
from ldm.settings.cli import run_app
from tests.cldm.released import GRID, MINI, checkpoint, dinov2_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bifrost folder and, beside it, the file that it was made of."""
    path = tmp_path_factory.mktemp("bifrost")
    save_file(checkpoint("bifrost"), path / "bifrost.safetensors")
    run("bifrost", path / "bifrost.safetensors", path / "model")
    return path / "model"


def run(kind: str, source: Path, out: Path, **settings) -> dict:
    return convert_compositor(kind, CompositorSettings(source, out, **settings), MINI)


def image(model: Compositor, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of a small model."""
    random = torch.Generator().manual_seed(seed)
    side = MINI.reference_size
    return {
        "x": torch.randn(2, 4, 16, 16, generator=random),
        "reference": torch.rand(1, 3, side, side, generator=random),
        "detail": torch.rand(1, 4, 32, 32, generator=random),
        "depth": torch.rand(1, 3, 32, 32, generator=random),
    }


@torch.inference_mode()
def noise(model: Compositor, w_detail: float = 1.0, w_depth: float = 1.0) -> torch.Tensor:
    given = image(model)
    conditions = model.conditions(given["reference"], given["detail"], given["depth"])
    return model(given["x"], torch.tensor(321), conditions, w_detail, w_depth)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_round_trip_is_bit_equal(folder: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"back{suffix}"
    export(ExportSettings(folder, out))
    before = load_file(folder.parent / "bifrost.safetensors")
    after = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)["state_dict"]
    buffers = schedule_buffers(folder / "scheduler")
    assert set(after) == set(before) | set(buffers)
    for key, value in after.items():
        if ".input_blocks.0.0." in key and key.startswith("control_model"):
            assert not value.any(), key
        elif key not in buffers:
            assert torch.equal(value, before[key]), key


def test_anydoor_layout_leaves_the_depth_branch_out(folder: Path, tmp_path: Path) -> None:
    export(ExportSettings(folder, tmp_path / "one.safetensors", layout="anydoor"))
    keys = set(load_file(tmp_path / "one.safetensors"))
    assert set(checkpoint("anydoor")) <= keys
    assert not any(key.startswith(("control_model_depth", "control_model_detail")) for key in keys)


def test_schedule_buffers_are_the_published_ones(folder: Path, test_data: Path) -> None:
    import numpy as np

    with np.load(test_data / "golden/compositor_tiny.npz") as golden:
        for key, value in schedule_buffers(folder / "scheduler").items():
            if f"out_buf_{key}" in golden.files:
                np.testing.assert_allclose(value, golden[f"out_buf_{key}"], rtol=1e-6, atol=1e-12)


@torch.inference_mode()
def test_anydoor_folder_works_at_once(tmp_path: Path) -> None:
    """The untrained depth branch adds nothing: the prediction is that of the single control."""
    save_file(checkpoint("anydoor"), tmp_path / "anydoor.safetensors")
    run("anydoor", tmp_path / "anydoor.safetensors", tmp_path / "model")
    model, config = load_compositor(tmp_path / "model")
    assert config.pair.hf_mode == "color"
    given = image(model)
    tokens, time = model.identity(given["reference"]), torch.tensor([321])
    stock = model.detail.net(given["x"][:1], time, tokens, given["detail"], return_dict=False)
    alone = model.unet(given["x"][:1], time, tokens, down_block_additional_residuals=stock[0],
                       mid_block_additional_residual=stock[1]).sample  # fmt: skip
    torch.testing.assert_close(noise(model)[:1], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(noise(model, w_depth=2.0), noise(model))
    assert not torch.equal(noise(model, w_detail=0.5), noise(model))


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_training_start_from_stable_diffusion(tmp_path: Path, layout: str) -> None:
    """Both branches hold the UNet's encoder, and the whole predicts what the UNet alone predicts."""
    save_file(checkpoint("sd21"), tmp_path / "sd.safetensors")
    torch.save(dinov2_file(), tmp_path / "dinov2.pth")
    encoder = tmp_path / "dinov2.pth"
    if layout == "folder":
        convert_single(
            "dinov2", ConvertSettings(encoder, tmp_path / "dinov2"), empty_networks(MINI)["image_encoder"]
        )
        encoder = tmp_path / "dinov2"
    run("sd21", tmp_path / "sd.safetensors", tmp_path / "model", dinov2=encoder)
    model, _ = load_compositor(tmp_path / "model")
    for branch in (model.detail.net, model.depth.net):
        for key, value in branch.down_blocks.state_dict().items():
            assert torch.equal(value, model.unet.down_blocks.state_dict()[key]), key
        assert branch.controlnet_cond_embedding.conv_in.weight.std() > 0
        assert not branch.controlnet_cond_embedding.conv_out.weight.any()
    given = image(model)
    with torch.inference_mode():
        tokens = model.identity(given["reference"]).expand(2, -1, -1)
        alone = model.unet(given["x"], torch.tensor(321), tokens).sample
    torch.testing.assert_close(noise(model), alone, atol=1e-6, rtol=1e-6)


def test_fresh_parts_follow_from_the_seed(tmp_path: Path) -> None:
    save_file(checkpoint("anydoor"), tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    hints = []
    for seed, name in ((0, "one"), (0, "two"), (1, "three")):
        run("anydoor", tmp_path / "a.safetensors", tmp_path / name, seed=seed)
        weights = load_file(tmp_path / name / "control_depth" / "diffusion_pytorch_model.safetensors")
        hints.append(weights["controlnet_cond_embedding.conv_in.weight"])
    assert torch.equal(hints[0], hints[1])
    assert not torch.equal(hints[0], hints[2])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("how", ["flat", "wrapped", "twice", "half", "training state"])
def test_every_form_of_the_file_gives_the_same_folder(how: str, folder: Path, tmp_path: Path) -> None:
    weights = checkpoint("bifrost")
    if how == "half":
        weights = {key: value.half() for key, value in weights.items()}
    extra = {"epoch": 3, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}]}
    ema = {"model_ema.decay": torch.tensor(0.999), "model_ema.diffusion_modelout2bias": torch.zeros(4)}
    content = {
        "flat": weights,
        "half": {"state_dict": weights},
        "wrapped": {"state_dict": weights},
        "twice": {"state_dict": {"state_dict": weights}},
        "training state": {"state_dict": weights | ema, **extra},
    }[how]
    torch.save(content, tmp_path / "b.ckpt")
    report = run("bifrost", tmp_path / "b.ckpt", tmp_path / "model")
    before, after = (
        load_compositor(folder)[0].state_dict(),
        load_compositor(tmp_path / "model")[0].state_dict(),
    )
    for key, value in before.items():
        if how == "half":
            torch.testing.assert_close(after[key], value, atol=2e-3, rtol=2e-3)
        else:
            assert torch.equal(after[key], value), key
    if how == "training state":
        assert report["not_weights"] == ["epoch", "optimizer_states"]
        assert report["dead"]["moving averages and their counters"]["count"] == 2


def test_encoder_may_come_from_another_file(folder: Path, tmp_path: Path) -> None:
    weights = checkpoint("bifrost")
    torch.save(
        {key: value for key, value in weights.items() if not key.startswith(ENCODER)}, tmp_path / "b.ckpt"
    )
    encoder = {key[len(ENCODER) :]: value for key, value in weights.items() if key.startswith(ENCODER)}
    torch.save(encoder, tmp_path / "dinov2.pth")
    with pytest.raises(ValueError, match=r"b.ckpt: has no DINOv2 weights; .*--dinov2"):
        run("bifrost", tmp_path / "b.ckpt", tmp_path / "model")
    run("bifrost", tmp_path / "b.ckpt", tmp_path / "model", dinov2=tmp_path / "dinov2.pth")
    assert torch.equal(noise(load_compositor(folder)[0]), noise(load_compositor(tmp_path / "model")[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(UNET + "out.2.bias"), "1 missing: model.diffusion_model.out.2.bias"),
        (lambda w: w.update({"strange.key": torch.zeros(1)}), "1 unknown: strange.key"),
        (lambda w: w.update({UNET + "out.2.bias": torch.zeros(5)}), r"1 wrong .* shape \(5,\), needs \(4,\)"),
        (lambda w: [w.pop(key) for key in list(w) if "depth" in key], "missing: control_model_depth"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(change, message: str, tmp_path: Path) -> None:
    weights = checkpoint("bifrost")
    change(weights)
    save_file(weights, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=message):
        run("bifrost", tmp_path / "b.safetensors", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_wrong_verb_is_pointed_out(tmp_path: Path) -> None:
    save_file(checkpoint("anydoor"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"looks like an AnyDoor .*\(verb anydoor\)"):
        run("bifrost", tmp_path / "a.safetensors", tmp_path / "model")


def test_overflow_in_half_precision_is_refused(tmp_path: Path) -> None:
    weights = checkpoint("bifrost")
    weights[UNET + "out.2.bias"] = weights[UNET + "out.2.bias"] + 1e6
    save_file(weights, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="conv_out.bias: its values do not fit into float16"):
        run("bifrost", tmp_path / "b.safetensors", tmp_path / "model", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]
    run("bifrost", tmp_path / "b.safetensors", tmp_path / "model", dtype="bf16")
    stored = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_report_names_every_weight_once(folder: Path, tmp_path: Path) -> None:
    run("bifrost", folder.parent / "bifrost.safetensors", tmp_path / "m", report=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    for part, model in empty_networks(MINI).items():
        told = [key for row in report["parts"][part].values() for key in row["weights"]]
        assert sorted(told) == sorted(model.state_dict())
    assert set(report["parts"]["control_depth"]) == {"file", "zero"}
    assert sum(row["count"] for row in report["dead"].values()) == 2 + 4


def test_configurations_suit_the_weights(folder: Path) -> None:
    config = load_compositor(folder)[1]
    assert config.pair == replace(CONFIGS["bifrost"].pair, size=MINI.size, reference_size=MINI.reference_size)
    assert CONFIGS["bifrost"].pair.hf_mode == "zero"


def test_position_embedding_is_kept_whole_beside_the_small_one(folder: Path, tmp_path: Path) -> None:
    whole = load_file(folder / "image_encoder" / POSITIONS)["pos_embed"]
    assert whole.shape[1] == GRID * GRID + 1
    small = load_file(folder / "image_encoder/model.safetensors")["embeddings.position_embeddings"]
    side = round((small.shape[1] - 1) ** 0.5)
    patches = whole[:, 1:].float().reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(patches, scale_factor=(side + 0.1) / GRID, mode="bicubic")
    assert torch.equal(small[:, 1:], scaled.flatten(2).transpose(1, 2))
    assert torch.equal(small[:, 0], whole[:, 0])
    (folder / "image_encoder" / POSITIONS).rename(tmp_path / "kept.safetensors")
    try:
        with pytest.raises(ValueError, match="name the original one with --positions"):
            export(ExportSettings(folder, tmp_path / "b.safetensors"))
        export(
            ExportSettings(
                folder, tmp_path / "b.safetensors", positions=folder.parent / "bifrost.safetensors"
            )
        )
    finally:
        (tmp_path / "kept.safetensors").rename(folder / "image_encoder" / POSITIONS)
    assert torch.equal(load_file(tmp_path / "b.safetensors")[ENCODER + "pos_embed"], whole)


def test_single_encoder_goes_there_and_back(tmp_path: Path) -> None:
    torch.save(dinov2_file(), tmp_path / "dinov2.pth")
    model = empty_networks(MINI)["image_encoder"]
    convert_single("dinov2", ConvertSettings(tmp_path / "dinov2.pth", tmp_path / "dinov2"), model)
    for suffix in (".pth", ".safetensors"):
        out = tmp_path / f"back{suffix}"
        out.write_text("another export")
        export(ExportSettings(tmp_path / "dinov2", out))
        assert out.with_name(f"back.old1{suffix}").read_text() == "another export"
        export(ExportSettings(tmp_path / "dinov2", out))  # the same once more is no other result
        export(ExportSettings(tmp_path / "dinov2", out, overwrite=True))
        assert not out.with_name(f"back.old2{suffix}").exists()
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert {key: tuple(value.shape) for key, value in back.items()} == {
        key: tuple(value.shape) for key, value in dinov2_file().items()
    }
    assert all(torch.equal(value, back[key]) for key, value in dinov2_file().items())


def test_command_line_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "model"
    assert run_app(build_app, ["bifrost", "--source", str(tmp_path / "no.ckpt"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'no.ckpt'}: no such file\n"
    assert run_app(build_app, ["export", "--source", str(tmp_path), "--out", "a.zip"]) == 2
    assert "out must end in one of .safetensors" in capsys.readouterr().err
    assert not out.exists()


def test_map_covers_the_small_networks() -> None:
    for part in ("unet", "control_detail", "control_depth", "vae", "image_encoder"):
        assert original_pieces(empty_networks(MINI)[part])
