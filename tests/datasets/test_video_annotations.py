"""Videos by annotation: YouTube-VIS as published, damaged objects, void and stuff of id images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.base import Rejected
from datasets.sources import readers
from datasets.sources.readers import read_ids
from datasets.sources.registry import DatasetsConfig, open_source
from datasets.sources.video import MoseConfig, UvoConfig, VipSegConfig, YoutubeConfig
from ldm.images import write_depth
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.datasets import trees
from tests.datasets.coco_files import SIZE, Tree, put, runs_of, square


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def videos(tree: Tree, segmentations: list[Any], **more: Any) -> Path:
    """instances.json of YouTube-VIS: one video of four frames, an object, and a crowd."""
    names = [f"v1/{k:05d}.jpg" for k in range(4)]
    for name in names:
        put(tree.images / name)
        write_depth((tree.depth / name).with_suffix(".png"), np.ones(SIZE, np.float32))
    video = {"id": 1, "file_names": names, "height": SIZE[0], "width": SIZE[1], "length": 4}
    base = {"video_id": 1, "category_id": 1, "bboxes": [], "areas": [], "segmentations": segmentations}
    objects = [{"id": 3, "iscrowd": 0, **base, **more}, {"id": 4, **base, "iscrowd": 1}]
    document = {
        "info": {},
        "videos": [video],
        "annotations": objects,
        "categories": [{"id": 1, "name": "ball"}],
    }
    tree.path.write_text(json.dumps(document))
    return tree.path


def runs(mask: np.ndarray) -> dict[str, Any]:
    return {"size": [*SIZE], "counts": runs_of(mask)}


def test_youtube_vis_is_read_as_published(tree):
    path = videos(tree, [runs(square(left=k)) if k != 2 else None for k in range(4)])
    config = YoutubeConfig(images=tree.images, depth=tree.depth, meta=path, interval=2, dynamics=2)
    source = config.open()
    assert [source.name(k) for k in range(len(source))] == ["1/3"]
    views = list(source.views(0))
    assert [view.image.name for view in views] == ["00000.jpg", "00001.jpg", "00003.jpg"]
    assert all(np.array_equal(view.mask(), square(left=k)) for view, k in zip(views, (0, 1, 3), strict=True))
    assert (source.dynamics, source.config.interval) == (2, 2)
    assert source.example(0, np.random.default_rng(0)).target_mask.sum() == 100
    whole = load_config(DatasetsConfig, ROOT / "configs/datasets.yaml",
                        [f"youtube_vis.{key}={value}" for key, value in
                         {"images": tree.images, "depth": tree.depth, "meta": path}.items()])  # fmt: skip
    assert len(open_source(whole, "youtube_vis")) == 1


def test_meta_of_youtube_vos_needs_its_masks(tree):
    trees.save_json(tree.path, {"videos": {"v1": {"objects": {"1": {"frames": ["00000"]}}}}})
    with pytest.raises(ValueError, match="masks: .*instances.json needs the folder of id images"):
        YoutubeConfig(images=tree.images, depth=tree.depth, meta=tree.path).open()


@pytest.mark.parametrize(
    ("segments", "more", "message"),
    [
        (3, {}, "1 of 2 annotations cannot be used: 3"),
        (4, {"video_id": 9}, "1 of 2 annotations cannot be used: 3 .there is no video 9"),
        (
            4,
            {"id": 4, "category_id": 2},
            "2 of 2 annotations .* 4 .other records have the same id 4",
        ),
    ],
)
def test_damaged_objects_of_videos_are_named(tree, caplog, segments, more, message):
    path = videos(tree, [runs(square())] * segments, **more)
    document = json.loads(path.read_text())
    document["annotations"][1]["iscrowd"] = 0
    document["annotations"][1]["segmentations"] = [runs(square())] * 4
    path.write_text(json.dumps(document))
    config = UvoConfig(images=tree.images, depth=tree.depth, video_json=path)
    if message.startswith("2"):
        with pytest.raises(ValueError, match=message):
            config.open()
    else:
        assert config.open().name(0) == "1/4"
        assert message.replace(".there", "(there") in caplog.text


def id_video(tree: Tree, kind: str, ids: np.ndarray, count: int = 2) -> dict[str, Path]:
    for k in range(count):
        put(tree.images / f"v/{k}.jpg")
        path = tree.images.parent / f"{kind}/v/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "mose":
            trees.save_ids(path, ids.astype(np.uint8))
        else:
            Image.fromarray(ids.astype(np.uint16)).save(path)
    return {"images": tree.images, "depth": tree.depth, "masks": tree.images.parent / kind}


def test_void_of_mose_is_no_object(tree):
    ids = np.where(square(), 3, np.where(square(0, 20, 5), 255, 0))
    folders = id_video(tree, "mose", ids)
    source = MoseConfig(**folders).open()
    assert source.config.void == 255
    for k in range(8):
        assert next(source.config.draws(source.items[0], np.random.default_rng(k)))[0].mask().sum() == 100
    assert next(iter(source.views(0))).mask().sum() == 100
    every = MoseConfig(**folders, void=None).open()
    drawn = {
        next(every.config.draws(every.items[0], np.random.default_rng(k)))[0].mask().sum() for k in range(20)
    }
    assert drawn == {100, 25}
    nothing = MoseConfig(**id_video(tree, "mose", np.where(square(), 255, 0))).open()
    with pytest.raises(Rejected, match="no common object"):
        next(nothing.config.draws(nothing.items[0], np.random.default_rng(0)))


def test_things_only_leaves_out_the_stuff_of_vipseg(tree):
    ids = np.where(square(), 6101, np.where(square(0, 20, 5), 12499, 124))
    folders = id_video(tree, "panomasks", ids)
    published = VipSegConfig(**folders).open()
    drawn = {next(published.config.draws(published.items[0], np.random.default_rng(k)))[0].mask().sum()
             for k in range(40)}  # fmt: skip
    assert drawn == {100, 25, 475}, "sky and road count, as published"
    things = VipSegConfig(**folders, things_only=True).open()
    drawn = {
        next(things.config.draws(things.items[0], np.random.default_rng(k)))[0].mask().sum()
        for k in range(40)
    }
    assert drawn == {100, 25}
    assert next(iter(things.views(0))).mask().sum() == 125
    for path in (tree.images.parent / "panomasks/v").iterdir():
        Image.fromarray(np.full((*SIZE, 3), (0, 60, 1), np.uint8)).save(path)
    with pytest.raises(ValueError, match="things_only: .*v/[01].png holds colours; set masks to the folder"):
        next(things.config.draws(things.items[0], np.random.default_rng(0)))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(("kind", "config"), [("mose", MoseConfig), ("panomasks", VipSegConfig)])
def test_a_frame_drawn_twice_is_read_once(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: str, config: type[VipSegConfig], count: int
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(readers, "read_ids", lambda path: [read_ids(path), read.append(path)][0])
    source = config(**id_video(tree, kind, np.where(square(), 3, 0), count)).open()
    seen = set[bool]()
    for k in range(30):
        read.clear()
        reference, target = next(source.config.draws(source.items[0], np.random.default_rng(k)))
        same = reference.image == target.image
        assert len(read) == 2 - same
        assert (reference is target) == same, "what is not a second view needs no second image and depth map"
        assert np.array_equal(reference.mask(), square())
        assert np.array_equal(target.mask(), square())
        assert reference.image.stem in {str(j) for j in range(count)}
        seen.add(same)
    assert seen == ({True} if count == 1 else {True, False})


def test_colours_of_a_single_frame_are_named(tree: Tree) -> None:
    folders = id_video(tree, "panomasks", np.where(square(), 6101, 124))
    Image.fromarray(np.full((*SIZE, 3), (0, 60, 1), np.uint8)).save(folders["masks"] / "v/1.png")
    things = VipSegConfig(**folders, things_only=True).open()
    with pytest.raises(ValueError, match=r"v/1.png holds colours"):
        list(things.config.draws(things.items[0], np.random.default_rng(1)))


def test_one_damaged_video_of_youtube_vos_is_left_out(tmp_path, caplog):
    trees.youtube(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["videos"]["v1"] = {"objects": {"3": {"category": "ball"}}}
    trees.save_json(tmp_path / "meta.json", meta)
    names = {"images": "JPEGImages", "depth": "Depth", "masks": "Annotations", "meta": "meta.json"}
    config = YoutubeConfig(**{key: tmp_path / name for key, name in names.items()})
    source = config.open()
    assert [source.name(k) for k in range(len(source))] == ["v0", "v2"]
    assert "1 of 3 videos cannot be used: v1 ('frames' is missing); left out" in caplog.text
    meta["videos"]["v2"] = None
    trees.save_json(tmp_path / "meta.json", meta)
    with pytest.raises(ValueError, match="2 of 3 videos cannot be used: v1 .*, v2 "):
        config.open()


def test_frames_written_on_windows_are_found(tree):
    path = videos(tree, [runs(square())] * 4)
    document = json.loads(path.read_text())
    document["videos"][0]["file_names"] = [f"v1\\{k:05d}.jpg" for k in range(4)]
    path.write_text(json.dumps(document))
    source = UvoConfig(images=tree.images, depth=tree.depth, video_json=path).open()
    assert all(view.image.is_file() for view in source.views(0))
