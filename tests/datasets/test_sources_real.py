"""Every source that has a sample among the real data runs on it: examples, refusals and their reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.base import Rejected
from datasets.inputs import AugmentationParams, PairOptions
from datasets.pairs import build_pair
from datasets.sources.registry import DatasetsConfig, open_source
from ldm.images import write_depth
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.images import room_depth

SMALL = PairOptions(size=(64, 64), reference_size=56)


def settings(data: Path, depth: Path) -> list[str]:
    """Where the sample of every source is. Views and DreamBooth backgrounds have no depth maps there."""
    videos, saliency = data / "ytbvos/train", data / "saliency"
    found = {
        "youtube_vos": {
            "images": videos / "JPEGImages",
            "masks": videos / "Annotations",
            "depth": videos / "Depth",
            "meta": videos / "meta.json",
        },
        "mose": {
            "images": data / "mose/train/JPEGImages",
            "masks": data / "mose/train/Annotations",
            "depth": data / "mose/train/depth",
        },
        "vipseg": {
            "images": data / "vipseg/images",
            "masks": data / "vipseg/panomasks",
            "depth": data / "vipseg/depth",
        },
        "uvo": {
            "images": videos / "JPEGImages",
            "depth": videos / "Depth",
            "video_json": data / "uvo/UVO_sparse_train_video_with_interpolation.json",
            "image_json": data / "uvo/UVO_sparse_train_video_with_interpolation_reorg.json",
        },
        "mvimgnet": {
            "images": data / "mvimgnet",
            "depth": depth / "mvimgnet",
            "listing": data / "mvimgnet/mvimagenet.txt",
        },
        "viton_hd": {
            "images": data / "vitonhd/train/image",
            "depth": data / "vitonhd/train/depth",
            "cloth": data / "vitonhd/train/cloth",
            "cloth_masks": data / "vitonhd/train/cloth-mask",
            "parses": data / "vitonhd/train/image-parse-v3",
        },
        "lvis": {
            "images": data / "coco/val2017",
            "depth": data / "coco/val2017_depth",
            "annotations": data / "lvis/lvis_schema_from_coco.json",
        },
        "coco_panoptic": {
            "images": data / "coco/val2017",
            "depth": depth / "coco",
            "annotations": data / "coco/annotations/panoptic_val2017.json",
            "masks": data / "coco/annotations/panoptic_val2017",
        },
        "sam": {"images": data / "sam/SAM", "depth": data / "sam/SAM_depth"},
        "saliency.msra": {
            "images": saliency / "MSRA10K_Imgs_GT",
            "masks": saliency / "MSRA10K_Imgs_GT",
            "depth": saliency / "MSRA10K_Depth_GT",
        },
        "saliency.duts_train": _duts(saliency / "DUTS-TR"),
        "saliency.duts_test": _duts(saliency / "DUTS-TE"),
        "saliency.hflickr": {
            "images": saliency / "HFlickr/real_images",
            "masks": saliency / "HFlickr/masks",
            "depth": saliency / "HFlickr/real_depth",
        },
        "dreambooth": {
            "objects": data / "dreambooth/AnyDoor_DreamBooth",
            "backgrounds": data / "dreambooth/v1_800",
            "depth": depth / "dreambooth",
        },
    }
    # The persons of the panoptic image are narrower than a tenth of it.
    relaxed = ["coco_panoptic.rules.min_side=0.05"]
    return relaxed + [f"{name}.{key}={path}" for name, keys in found.items() for key, path in keys.items()]


def _duts(part: Path) -> dict[str, Path]:
    return {
        key: part / f"{part.name}-{ending}"
        for key, ending in {"images": "Image", "masks": "Mask", "depth": "Depth"}.items()
    }


@pytest.fixture(scope="module")
def config(test_data, tmp_path_factory):
    depth, data = tmp_path_factory.mktemp("depth"), test_data / "data"
    for view in ("1/duck_toy/images/00", "2/robot_toy/images/00"):
        for k in (1, 2):
            write_depth(depth / "mvimgnet" / f"{view}{k}.png", room_depth(512, 512))
    for path in (data / "dreambooth/v1_800").glob("*_GT.png"):
        write_depth(depth / "dreambooth" / path.name, room_depth(512, 512))
    write_depth(depth / "coco/000000142238.png", room_depth(427, 640))
    return load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", settings(data, depth))


def outcomes(source, draws: int) -> Counter[str]:
    """Reasons of refusals, and "accepted", over draws from a source, each of which becomes a pair."""
    counted: Counter[str] = Counter()
    for k in range(draws):
        rng = np.random.default_rng((3, k))
        try:
            inputs = source.example(k % len(source), rng)
        except Rejected as error:
            counted[str(error).split(":")[0]] += 1
            continue
        assert inputs.background_u8.shape[:2] == inputs.background_depth_01.shape == inputs.target_mask.shape
        pair = build_pair(inputs, SMALL, AugmentationParams.sample(rng, SMALL))
        assert pair.edit_mask.any()
        counted["accepted"] += 1
    return counted


@pytest.mark.parametrize(
    "name",
    ["youtube_vos", "uvo", "mvimgnet", "viton_hd", "lvis", "sam", "saliency", "dreambooth", "coco_panoptic"],
)
def test_sample_gives_examples(name, config):
    source = open_source(config, name)
    assert len(source) > 0
    assert outcomes(source, 12)["accepted"] > 0


def test_mose_refuses_a_video_without_a_common_object(config):
    """`judo` shows another id in each frame; `tennis` shows one throughout."""
    source = open_source(config, "mose")
    assert [source.name(k) for k in range(len(source))] == ["judo", "tennis"]
    counted = outcomes(source, 24)
    assert counted["accepted"] > 0
    assert counted["no common object"] > 0


def test_vipseg_reads_panoptic_images_as_videos(config):
    source = open_source(config, "vipseg")
    assert [source.name(k) for k in range(len(source))] == ["coco_142238", "tennis"]
    counted = outcomes(source, 60)
    assert counted["accepted"] > 0
    assert set(counted) <= {
        "accepted",
        "reference too small",
        "reference too large",
        "reference in pieces",
        "target too small",
        "target too large",
    }


def test_a_image_without_depth_map_is_named_with_the_command(config, test_data):
    elsewhere = replace(config.lvis, depth=test_data / "data/coco/annotations")
    lvis = open_source(replace(config, lvis=elsewhere), "lvis")
    with pytest.raises(ValueError, match=r"does not exist; `python -m ldm.precompute_depth \S+val2017 "):
        outcomes(lvis, 30)
