"""What a job leaves: layers for editors, and patches to go on from."""

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageCms

from compose import compose_layers, layering
from compose.layers import LayerFolder, save_job_layers
from compose.verbs import JobNetworks, apply_layer
from ldm.images import read_image, write_png
from tests.compose.rendered import Room
from tests.compose.test_layers import depth_and_mask, merged, opened

NETWORKS = JobNetworks()


def layers_of(room: Room) -> list[dict[str, Any]]:
    """Three objects that overlap, the middle one last, then one is moved and another erased."""
    boxes = {"far": ([0.2, 0.3, 0.55, 0.7], [0.6, 0.65]), "near": ([0.25, 0.5, 0.6, 0.9], [0.8, 0.9])}
    boxes["middle"] = ([0.35, 0.35, 0.7, 0.8], [0.7, 0.75])
    objects = [room.capsule(name=name, box=box, depth=depth) for name, (box, depth) in boxes.items()]
    move = {"move": "far", "box": [0.6, 0.5, 0.95, 0.85], "depth": [0.6, 0.65]}
    return [*objects, {"erase": "it", "mask": room.file("torus_mask.png")}, move]


KINDS = ("plain", "profile", "alpha", "shadow")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_over_each_other_are_the_image_in_the_order_of_depth(room, tmp_path, kind):
    job = room.job(*layers_of(room), empty=True)
    if kind == "alpha":
        alpha_u8 = np.full((96, 96), 255, np.uint8)
        alpha_u8[:20] = 90
        write_png(tmp_path / "room.png", room.without_u8, alpha_u8=alpha_u8)
        job["background"] = tmp_path / "room.png"
    if kind == "shadow":
        job["shadow"] = "contact"
    if kind == "profile":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        Image.fromarray(room.without_u8).save(tmp_path / "room.png", icc_profile=profile)
        job["background"] = tmp_path / "room.png"
    result = compose_layers(job, NETWORKS)
    result.save(tmp_path / "a.png")
    path = save_job_layers(result, tmp_path / "a.png", False)
    archive, layers = opened(path)
    after = np.array(Image.open(tmp_path / "a.png").convert("RGBA"))
    opaque = after[..., 3] == 255
    assert np.array_equal(merged(layers)[opaque], after[opaque])
    assert np.array_equal(layers["background"][~opaque], after[~opaque])
    names = [name for name in layers if "," not in name and name.split()[0] in ("far", "middle", "near")]
    assert [name.split()[0] for name in names] == ["far", "middle", "near"]  # the lowest first
    assert list(layers)[0] == "background"
    about = json.loads(archive.read("layers.json"))
    assert [entry["name"] for entry in about["layers"]] == list(layers)
    for name in names:
        thing = result.scene.things[name.split()[0]]
        entry = next(entry for entry in about["layers"] if entry["name"] == name)
        depth_u16, mask, (y, x) = depth_and_mask(archive, entry)
        part = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
        assert mask[thing.mask[part]].all()
        seen = depth_u16[thing.mask[part]] / 65535
        assert np.abs(seen - result.scene.depth_01[part][thing.mask[part]]).max() < 2 / 65535
    first = archive.infolist()[0]
    assert (first.filename, archive.read("mimetype")) == ("mimetype", b"image/openraster")
    whole = np.array(Image.open(io.BytesIO(archive.read("mergedimage.png"))).convert("RGBA"))
    assert np.array_equal(whole, after)


def test_names_of_layers_are_safe_in_files_and_xml(room, tmp_path):
    layer = room.capsule(name='../a <b> & "c"')
    result = compose_layers(
        room.job(layer, room.capsule(name="../a (b) c", box=[0.6, 0.1, 0.9, 0.4]), empty=True), NETWORKS
    )
    archive, layers = opened(save_job_layers(result, tmp_path / "a.png", False))
    assert set(layers) >= {'../a <b> & "c"', "../a (b) c"}
    assert all(".." not in name for name in archive.namelist())
    assert ElementTree.fromstring(archive.read("stack.xml")).tag == "image"


def folder_run(
    room: Room, job: dict[str, Any], out: Path, monkeypatch, **how: bool
) -> tuple[list[str], bytes]:
    """Names of the layers that were made, and the image."""
    made: list[str] = []

    def count(layer: Any, *more: Any) -> Any:
        made.append(layer.name)
        return apply_layer(layer, *more)

    monkeypatch.setattr(layering, "apply_layer", count)
    folder = LayerFolder(out, how.get("resume", True), how.get("overwrite", False))
    compose_layers(job, NETWORKS, folder).save(out, overwrite=True)
    if not how.get("resume", True):
        folder.save()
    return list(made), out.read_bytes()


def changed(layers: list[dict[str, Any]], index: int, **more: Any) -> list[dict[str, Any]]:
    return [{**layer, **more} if number == index else layer for number, layer in enumerate(layers)]


def test_nothing_is_made_again_that_nothing_has_changed_for(room, tmp_path, monkeypatch):
    job, out = room.job(*layers_of(room), empty=True), tmp_path / "a.png"
    first, bytes_first = folder_run(room, job, out, monkeypatch)
    second, bytes_second = folder_run(room, job, out, monkeypatch)
    alone = compose_layers(job, NETWORKS)
    alone.save(tmp_path / "b.png")
    assert first == ["far", "near", "middle", "it", "far"]
    assert second == []
    assert bytes_first == bytes_second == (tmp_path / "b.png").read_bytes()


def apart(room: Room) -> list[dict[str, Any]]:
    """Two small objects whose crops do not meet, and one that looks at both."""
    boxes = {"left": [0.05, 0.05, 0.2, 0.2], "right": [0.75, 0.75, 0.95, 0.95], "wide": [0.1, 0.2, 0.9, 0.9]}
    alone = {"depth": [0.9, 0.95], "shadow": "off"}  # a shadow looks at all of the depth
    return [room.capsule(name=name, box=box, **alone) for name, box in boxes.items()]


CHANGES = {  # which layer is changed, how -> which layers are made again
    "first": (0, {"seed": 8}, ["left", "wide"]),
    "second": (1, {"depth": [0.8, 0.85]}, ["right", "wide"]),
    "last": (2, {"seed": 8}, ["wide"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_only_what_depends_on_a_changed_layer_is_made_again(room, tmp_path, monkeypatch, case):
    index, more, expected = CHANGES[case]
    out, layers = tmp_path / "a.png", apart(room)
    folder_run(room, room.job(*layers, empty=True), out, monkeypatch)
    job = room.job(*changed(layers, index, **more), empty=True)
    made, image = folder_run(room, job, out, monkeypatch)
    assert made == expected
    compose_layers(job, NETWORKS).save(tmp_path / "b.png")
    assert image == (tmp_path / "b.png").read_bytes()


def test_with_shadows_all_later_layers_are_made_again(room, tmp_path, monkeypatch):
    layers, out = [{**layer, "shadow": "contact"} for layer in apart(room)], tmp_path / "a.png"
    folder_run(room, room.job(*layers, empty=True), out, monkeypatch)
    job = room.job(*changed(layers, 0, seed=8), empty=True)
    made, image = folder_run(room, job, out, monkeypatch)
    assert made == ["left", "right", "wide"]
    compose_layers(job, NETWORKS).save(tmp_path / "b.png")
    assert image == (tmp_path / "b.png").read_bytes()


def test_a_new_layer_or_a_lost_one_makes_only_the_later_ones_again(room, tmp_path, monkeypatch):
    layers, out = apart(room), tmp_path / "a.png"
    folder_run(room, room.job(*layers, empty=True), out, monkeypatch)
    assert folder_run(room, room.job(*layers[1:], empty=True), out, monkeypatch)[0] == ["wide"]
    text = {"erase": "it", "mask": room.file("torus_mask.png")}
    assert folder_run(room, room.job(layers[1], text, empty=True), out, monkeypatch)[0] == ["it"]


def test_changed_files_of_the_folder_are_not_used_and_not_lost(room, tmp_path, monkeypatch, caplog):
    layers, out = apart(room)[:2], tmp_path / "a.png"
    job = room.job(*layers, empty=True)
    folder_run(room, job, out, monkeypatch)
    mine = tmp_path / "a_layers" / "01_left.png"
    write_png(mine, read_image(mine).rgb_u8 ^ 1)
    data = mine.read_bytes()
    made, _ = folder_run(room, job, out, monkeypatch)
    assert made == ["left"]
    assert "01_left.png is not as it was written: the layer is made again" in caplog.text
    assert [old.read_bytes() for old in mine.parent.glob("01_left.old*.png")] == [data]


def test_a_changed_background_or_input_makes_its_layers_again(room, tmp_path, monkeypatch):
    background, thing = tmp_path / "room.png", tmp_path / "thing.png"
    background.write_bytes((room.folder / "without.png").read_bytes())
    thing.write_bytes((room.folder / "object.png").read_bytes())
    layers = [{**apart(room)[0], "object": str(thing)}, apart(room)[1]]
    job, out = {**room.job(*layers, empty=True), "background": str(background)}, tmp_path / "a.png"
    folder_run(room, job, out, monkeypatch)
    rgb_u8 = room.without_u8.copy()
    rgb_u8[90:, 90:] ^= 1
    write_png(background, rgb_u8)
    assert folder_run(room, job, out, monkeypatch)[0] == ["right"]
    image = read_image(thing)
    write_png(thing, image.rgb_u8 ^ 1, alpha_u8=image.alpha_u8)
    assert folder_run(room, job, out, monkeypatch)[0] == ["left"]


def test_an_interrupted_job_goes_on_where_it_stopped(room, tmp_path, monkeypatch):
    layers, out = apart(room), tmp_path / "a.png"
    broken = room.job(*layers[:2], {"erase": "it", "mask": room.file("object.png")}, empty=True)
    with pytest.raises(ValueError, match="layer 3"):  # a mask of another size, seen when its turn comes
        folder_run(room, broken, out, monkeypatch)
    assert folder_run(room, room.job(*layers, empty=True), out, monkeypatch)[0] == ["wide"]


def test_without_resume_an_earlier_folder_is_kept_under_another_name(room, tmp_path, monkeypatch):
    job, out = room.job(apart(room)[0], empty=True), tmp_path / "a.png"
    folder_run(room, job, out, monkeypatch, resume=False)
    (tmp_path / "a_layers" / "note.txt").write_text("mine")
    folder_run(room, room.job(apart(room)[0] | {"seed": 9}, empty=True), out, monkeypatch, resume=False)
    assert (tmp_path / "a_layers.old1" / "note.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "a_layers").iterdir()) == [
        "01_left.png", "01_left_depth.png", "01_left_mask.png", "layers.json",
    ]  # fmt: skip
