"""Training as the released code does it: the preset, its random decisions, sampled latents, the table."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cldm.config import AutoencoderConfig, CompositorConfig
from cldm.create import create_compositor
from cldm.training.module import CompositorModule
from cldm.training.settings import RELEASED, CompositorTrainConfig, RunConfig
from datasets import masks
from datasets.inputs import PUBLISHED_TRAINING, AugmentationParams, PairOptions
from datasets.masks import perturb_mask
from datasets.pairs import build_pair
from ldm.settings.config import dump_yaml, load_config, read_config, to_plain
from ldm.settings.schema import flat_settings
from tests.cldm.small import SMALL
from tests.conftest import ROOT
from tests.datasets.test_pairs import sample

BIFROST, TINY = ROOT / "configs/bifrost.yaml", ROOT / "configs/tiny/compositor.yaml"
OWN = ("size", "reference_size", "preset")


def differing(pair: PairOptions) -> set[str]:
    """Names of the fields that are not those of the published training."""
    names = [field.name for field in fields(PairOptions) if field.name not in OWN]
    return {name for name in names if getattr(pair, name) != getattr(PUBLISHED_TRAINING, name)}


@pytest.mark.parametrize("file", [BIFROST, TINY], ids=["bifrost", "tiny"])
def test_the_preset_sets_every_key_whatever_the_file_says(file: Path) -> None:
    plain, config = load_config(RunConfig, file), load_config(RunConfig, file, ["pair.preset=published"])
    assert differing(plain.pair) >= {"hf_mode", "collage", "border", "resample", "augment"}
    assert differing(config.pair) == set()
    assert {key: to_plain(getattr(config.train, key)) for key in RELEASED} == RELEASED
    assert (config.pair.size, config.train.seed, config.data) == (
        plain.pair.size,
        plain.train.seed,
        plain.data,
    )
    assert config.pair.augment.levels == (0.0, 0.0, 0.7, 0.0, 0.3)
    assert (config.pair.augment.flip, config.pair.augment.brightness, config.train.vae) == (
        0.5,
        0.2,
        "sample",
    )


@pytest.mark.parametrize(
    ("text", "keys", "changed"),
    [
        ("pair: {preset: published, hf_mode: gray255}", [], {"hf_mode"}),
        ("pair: {hf_mode: gray255, preset: published}", [], {"hf_mode"}),
        ("pair: {hf_mode: gray255}", ["pair.preset=published"], set()),
        ("pair: {preset: published}", ["pair.hf_mode=gray255", "pair.collage=mask"], {"hf_mode", "collage"}),
        ("pair: {preset: published, augment: {flip: 0.1}}", [], {"augment"}),
        ("pair: {preset: none}", ["pair.preset=published"], set()),
    ],
)
def test_keys_beside_or_after_the_preset_win(
    text: str, keys: list[str], changed: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"base: {BIFROST}\n{text}\n")
    config = load_config(RunConfig, file, keys)
    assert differing(config.pair) == changed
    written = tmp_path / "config.yaml"
    written.write_text(dump_yaml(config))
    assert load_config(RunConfig, written) == config


def test_keys_of_train_beside_the_preset_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"base: {BIFROST}\npair: {{preset: published}}\ntrain: {{vae: mode, drop_depth: 0.2}}\n")
    train = load_config(RunConfig, file, ["train.lr=2e-5"]).train
    assert (train.vae, train.drop_depth, train.drop_detail, train.lr) == ("mode", 0.2, 0.0, 2e-5)


@pytest.mark.parametrize("value", ["publish", "anydoor"])
def test_an_unknown_preset_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"unknown pair.preset '{value}'; .*allowed: none, published"):
        load_config(RunConfig, BIFROST, [f"pair.preset={value}"])


def test_a_preset_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    told = "pair.preset=published is for training settings; elsewhere take .*PUBLISHED_TRAINING"
    with pytest.raises(ValueError, match=told):
        PairOptions(preset="published")
    (tmp_path / "compositor.json").write_text('{"pair": {"preset": "published"}}')
    with pytest.raises(ValueError, match=told):
        read_config(CompositorConfig, tmp_path / "compositor.json")


def test_a_file_reproduces_the_published_run_and_the_other_names_it() -> None:
    config, plain = (
        load_config(RunConfig, ROOT / f"configs/{name}.yaml") for name in ("bifrost_published", "bifrost")
    )
    assert config == replace(
        load_config(RunConfig, BIFROST, ["pair.preset=published"]),
        out=config.out, trainer=replace(plain.trainer, precision="16-mixed"),
    )  # fmt: skip
    header = [line for line in BIFROST.read_text().splitlines() if line.startswith("#")]
    assert "configs/bifrost_published.yaml" in "\n".join(header)


def test_random_decisions_are_the_published_ones() -> None:
    drawn = [AugmentationParams.sample(np.random.default_rng(k), PUBLISHED_TRAINING) for k in range(1500)]
    assert {one.crop_ratio for one in drawn} == {round(tenths / 10, 6) for tenths in range(13, 30)}
    assert {one.reference_ratio for one in drawn} == {1.1, 1.2, 1.3, 1.4}
    levels = Counter(one.mask_level for one in drawn)
    assert set(levels) == {"perturbed", "box"}
    assert levels["perturbed"] / 1500 == pytest.approx(0.7, abs=0.04)
    assert np.mean([one.flip for one in drawn]) == pytest.approx(0.5, abs=0.05)
    relit = [one for one in drawn if one.brightness != 0 or one.gain != (1.0, 1.0, 1.0)]
    assert len(relit) / 1500 == pytest.approx(0.5, abs=0.05)
    assert max(abs(one.brightness) for one in relit) == pytest.approx(0.2, abs=0.005)
    assert all(one.gain[0] == one.gain[1] == one.gain[2] for one in relit)
    assert (min(one.gain[0] for one in relit), max(one.gain[0] for one in relit)) == pytest.approx(
        (0.8, 1.2), abs=0.01
    )


def test_other_random_decisions_are_as_before() -> None:
    params = AugmentationParams.sample(np.random.default_rng(5), PairOptions())
    rng, ranges = np.random.default_rng(5), PairOptions().augment
    contrast = 1 + rng.uniform(-0.2, 0.2)
    gain = contrast * (1 + rng.uniform(-0.1, 0.1, 3))
    assert params.gain == tuple(gain)
    assert params.crop_ratio == rng.uniform(*ranges.crop_ratio)
    assert params.reference_ratio == rng.uniform(*ranges.reference_ratio)


@pytest.mark.parametrize(
    ("brightness", "gain", "white"), [(-0.2, 1.0, 204), (0.1, 1.0, 255), (0.0, 0.8, 204)]
)
def test_brightness_changes_the_white_margin_by_option(brightness: float, gain: float, white: int) -> None:
    params = AugmentationParams(brightness=brightness, gain=(gain,) * 3)
    for whole, corner in ((True, white), (False, 255)):
        options = PairOptions(size=(64, 64), reference_size=56)
        options = replace(options, augment=replace(options.augment, whole_view=whole))
        plain = build_pair(sample(), options).reference_01
        pair = build_pair(sample(), options, replace(params, crop_ratio=2.0))
        assert torch.round(pair.reference_01[:, 0, 0] * 255).tolist() == [corner] * 3
        inside = torch.clip(plain[:, 28, 28] * 255 * gain + 255 * brightness, 0, 255)
        assert pair.reference_01[:, 28, 28] * 255 == pytest.approx(inside, abs=2)


def test_deformation_happens_at_full_size_as_published() -> None:
    mask = np.zeros((400, 500), bool)
    mask[100:300, 120:380] = True
    region = np.ones_like(mask)
    given = (mask, "perturbed", region, 0.02)
    published = masks.mask_level(*given, np.random.default_rng(3), shape="legacy-rect")
    assert np.array_equal(published, perturb_mask(mask, np.random.default_rng(3), whole=True))
    ours = masks.mask_level(*given, np.random.default_rng(3))
    assert np.array_equal(ours, perturb_mask(mask, np.random.default_rng(3)))
    assert not np.array_equal(ours, published)


def kl_module(vae: str, seed: int = 0) -> CompositorModule:
    sizes = replace(SMALL, autoencoder=AutoencoderConfig("kl", (32, 32, 32), 1, 4))
    return CompositorModule(create_compositor(sizes, 1), CompositorTrainConfig(vae=vae, seed=seed))


def test_latents_are_sampled_from_the_posterior_by_option() -> None:
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mode, module = kl_module("mode"), kl_module("sample")
    module.model.load_state_dict(mode.model.state_dict())
    posterior = mode.model.latent_space.vae.encode(image).latent_dist
    assert torch.equal(mode.latents(image), mode.model.latent_space.encode(image))
    drawn = torch.stack([module.latents(image) for module.batch_number in range(60)])
    raw = drawn * module.model.latent_space.std + module.model.latent_space.mean
    assert (raw.mean(0) - posterior.mean).abs().mean() < 0.2 * posterior.std.mean()
    assert float(raw.std(0).mean() / posterior.std.mean()) == pytest.approx(1, abs=0.05)
    module.batch_number = 7
    again, alone = module.latents(image), module.latents(image[:2])
    assert torch.equal(
        again, drawn[7]
    )  # what the number of the batch decides, an interruption does not change
    torch.testing.assert_close(alone, again[:2])  # nor the number of devices
    other = kl_module("sample", seed=1)
    other.model.load_state_dict(mode.model.state_dict())
    other.batch_number = 7
    assert not torch.equal(other.latents(image), again)


def test_an_autoencoder_without_posterior_cannot_be_sampled() -> None:
    with pytest.raises(
        ValueError, match="vae=sample needs an autoencoder with a posterior; AutoencoderTiny has none"
    ):
        CompositorModule(create_compositor(SMALL, 1), CompositorTrainConfig(vae="sample"))


def rows() -> list[list[str]]:
    """Cells of the table of differences: here, published, why, switch, test."""
    text = (ROOT / "docs/compositor.md").read_text().partition("## Differences from the published")[2]
    table = text.partition("| here |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_every_difference_names_its_switch_and_a_test(row: list[str]) -> None:
    from compose.settings import CompositeSettings

    _, published, why, switch, test = row
    assert published
    assert why
    if not switch.startswith("none: "):
        flags = {"--" + name.replace("_", "-") for name in flat_settings(CompositeSettings)}
        known = {*flat_settings(RunConfig), *flags}
        named = re.findall(r"`(--[\w-]+|[\w.]+)(?:[:=] ?[^`]*| [^`]*)?`", switch)
        assert named
        assert not [name for name in named if name not in known and f"pair.{name}" not in known]
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", test) or pytest.fail(f"no test: {test}"):
        tree = ast.parse((ROOT / "tests" / path).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", [field.name for field in fields(PairOptions) if field.name not in OWN])
def test_every_key_that_the_published_training_changes_is_in_the_table(name: str) -> None:
    switches = " ".join(row[3] for row in rows())
    if getattr(PUBLISHED_TRAINING, name) != getattr(PairOptions(), name):
        assert f"`pair.{name}" in switches


@pytest.mark.parametrize(
    "key",
    [key for key, value in RELEASED.items() if value != to_plain(getattr(CompositorTrainConfig(), key))],
)
def test_every_key_of_training_that_the_preset_changes_is_in_the_table(key: str) -> None:
    assert f"train.{key}" in " ".join(row[3] for row in rows())
