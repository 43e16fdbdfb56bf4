"""`--shadow`: the ground darkens within a region that is known before, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import compose, compose_layers, load_models
from compose.layers import save_job_layers
from compose.pipeline import Result
from compose.settings import CAST, CONTACT, ComposeSettings
from compose.shadow import contact, ground_under, plane_over
from compose.verbs import JobNetworks
from datasets.geometry import crop_round
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from llava_bifrost.placement.ground import fit_ground
from run_inference import build_app
from tests.compose.test_layers import merged, opened

H, W = 96, 128
BOX = (0.35, 0.4, 0.65, 0.8)  # an object on the floor
KINDS = (CONTACT, CAST)
POST = np.s_[50:, 86:94]  # what stands before the floor at its right


def floor(horizon: float = 0.3, h: int = H) -> np.ndarray:
    """(h, W) depth of a floor seen from above, and of a wall behind it."""
    rows = (np.arange(h) + 0.5) / h
    return np.repeat(np.maximum((rows - horizon) / (1 - horizon), 0.05)[:, None], W, axis=1)


def settings_of(shadow: str = CONTACT, post: bool = True, **more: Any) -> ComposeSettings:
    """A striped room with a nearer post, and a red block."""
    room, depth_01 = np.full((H, W, 3), 150, np.uint8), floor()
    room[:, ::6] = 190
    if post:
        room[POST], depth_01[POST] = (10, 90, 10), 0.98
    thing = np.full((40, 40, 3), (200, 30, 30), np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[2:38, 4:36] = True
    given: dict[str, Any] = {
        "background": room, "background_depth": depth_01.astype(np.float32), "object": thing,
        "object_mask": mask, "box": BOX, "painter": "paste", "shadow": shadow, "device": "cpu", **more,
    }  # fmt: skip
    return ComposeSettings(**given)


def composed(shadow: str = CONTACT, **more: Any) -> Result:
    settings = settings_of(shadow, **more)
    return compose(settings, load_models(settings), progress=False)


def changed(result: Result) -> np.ndarray:
    return (result.images_u8[0] != result.background.own_u8).any(axis=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("painter", ["paste", "bifrost"])
def test_nothing_outside_the_declared_region_changes(kind: str, painter: str) -> None:
    result, plain = composed(kind, painter=painter, steps=1), composed("off", painter=painter, steps=1)
    assert result.shadow_mask is not None
    assert result.shadow_mask.any()
    assert not (result.shadow_mask & ~result.edit_mask).any()
    assert not (changed(result) & ~result.edit_mask).any()
    assert result.changed_outside == 0
    assert np.array_equal(result.edit_mask, plain.edit_mask | result.shadow_mask)
    beside = result.shadow_mask & ~plain.edit_mask
    assert result.report["shadow"]["kind"] == kind
    assert result.report["shadow"]["pixels"] == beside.sum() > 0
    assert 0 < result.report["shadow"]["mean_darkening"] < 1
    assert f"{beside.sum()} pixels of the ground in its shadow" in result.summary
    before, after = (image[beside].astype(int) for image in (result.background.own_u8, result.images_u8[0]))
    assert (after <= before).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["place", "replace"])
def test_what_stands_before_the_ground_keeps_every_byte(kind: str, mode: str) -> None:
    result = composed(kind, mode=mode, erase="nothing", eraser="opencv")
    assert not changed(result)[POST].any()
    assert result.shadow_mask is not None
    assert not result.shadow_mask[POST].any()
    assert not result.shadow_mask[: int(0.3 * H)].any()  # nor does the wall


def test_what_fills_a_hole_does_not_depend_on_the_shadow() -> None:
    mask = np.zeros((H, W), bool)
    mask[20:78, 30:50] = True
    given = {"mode": "replace", "target_mask": mask, "eraser": "exemplar", "depth": (0.7,)}
    with_shadow, without = composed(**given), composed("off", **given)
    assert with_shadow.shadow_mask is not None
    lit = mask & ~with_shadow.shadow_mask
    assert lit.sum() > 100
    assert np.array_equal(with_shadow.images_u8[0][lit], without.images_u8[0][lit])


def test_a_stain_beside_the_foot_would_be_seen_without_the_post() -> None:
    without, mask = composed(post=False), composed().shadow_mask
    assert without.shadow_mask is not None
    assert mask is not None
    assert without.shadow_mask[POST].any()
    assert np.array_equal(without.shadow_mask[:, :70], mask[:, :70])


@pytest.mark.parametrize(
    ("box", "depth"),
    [((0.35, 0.05, 0.65, 0.35), (0.7,)), ((0.1, 0.1, 0.3, 0.45), (0.9,)), (BOX, (0.97, 0.99))],
    ids=["in the air", "near the camera", "before its foot"],
)
def test_an_object_that_floats_darkens_nothing_by_touch(box: Any, depth: Any) -> None:
    result = composed(box=box, depth=depth, post=False)
    assert result.report["shadow"] == {"kind": CONTACT, "pixels": 0, "mean_darkening": 0.0}
    assert np.array_equal(result.images_u8[0], composed("off", box=box, depth=depth, post=False).images_u8[0])


def test_off_leaves_the_ground_alone() -> None:
    result = composed("off")
    assert result.shadow_mask is None
    assert "shadow" not in result.report
    assert "shadow" not in result.summary
    assert not (changed(result) & ~result.edit_mask).any()


@pytest.mark.parametrize("box", [BOX, (0.05, 0.5, 0.3, 0.9), (0.6, 0.3, 0.8, 0.7)], ids=str)
def test_sparse_pixels_measure_the_plane_of_a_large_image(box: Any, monkeypatch: Any) -> None:
    large = {"background": np.full((12 * H, 12 * W, 3), 150, np.uint8), "box": box}
    large["background_depth"] = np.repeat(floor(h=12 * H)[:, :1], 12 * W, axis=1).astype(np.float32)
    sparse = composed(post=False, **large)
    monkeypatch.setattr("compose.shadow.ENOUGH", 12 * W)
    whole = composed(post=False, **large)
    assert whole.shadow_mask is not None
    assert sparse.shadow_mask is not None
    assert (whole.shadow_mask ^ sparse.shadow_mask).sum() < 0.02 * whole.shadow_mask.sum()
    assert sparse.changed_outside == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_within_the_mask_where_that_is_asked_for(kind: str) -> None:
    mask = np.zeros((H, W), bool)
    mask[30:78, 40:90] = True
    result = composed(kind, target_mask=mask, within_mask=True)
    assert not changed(result)[~mask].any()
    assert not result.edit_mask[~mask].any()
    assert result.shadow_mask is not None
    assert result.shadow_mask.any()


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_and_profiled_backgrounds(kind: str, tmp_path: Path) -> None:
    plain = settings_of(kind)
    alpha_u8 = np.full((H, W), 255, np.uint8)
    alpha_u8[85:] = 0
    write_png(tmp_path / "room.png", read_image(plain.background).rgb_u8, alpha_u8=alpha_u8)
    result = composed(kind, background=tmp_path / "room.png")
    assert result.changed_outside == 0
    alpha = result.images[0].alpha_u8
    assert alpha is not None
    assert (alpha[~result.edit_mask] == alpha_u8[~result.edit_mask]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    settings, flags = settings_of(kind), list[str]()
    for name in ("background", "background_depth", "object", "object_mask"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(getattr(settings, name).read_bytes())
        flags += [f"--{name.replace('_', '-')}", str(path)]
    image, again = tmp_path / "a.png", tmp_path / "b.png"
    flags += ["--box", ",".join(map(str, BOX)), "--painter", "paste", "--shadow", kind, "--device", "cpu"]
    assert run_app(build_app, ["image", *flags, "--out", str(image)]) == 0
    assert run_app(build_app, ["replay", str(image), "--out", str(again)]) == 0
    assert image.read_bytes() == again.read_bytes()
    report = json.loads(image.with_suffix(".json").read_text())
    assert report["shadow"]["kind"] == report["recipe"]["settings"]["shadow"] == kind
    assert ("shadow" in report["recipe"]["weights"]) == (kind == CAST)


def test_an_object_on_a_table_darkens_the_table_and_not_the_floor() -> None:
    depth_01, ground, box = floor(), fit_ground(floor()), (0.4, 0.2, 0.6, 0.62)
    table = np.zeros((H, W), bool)
    table[40:70, 20:108] = True
    y, x = (np.indices((H, W)) + 0.5) / [[[H]], [[W]]]
    depth_01[table] = ground.plane.raised(1.25, ground.horizon_d).at(x, y)[table]  # type: ignore[index]
    depth_01[70:80, 20:108] = depth_01[69, 20:108]  # its front
    given = {"box": box, "background_depth": depth_01.astype(np.float32), "post": False}
    result = composed(**given)
    assert result.shadow_mask is not None
    beside = result.shadow_mask & ~composed("off", **given).edit_mask
    assert beside.sum() > 20
    assert not (beside & ~table).any()


@pytest.mark.parametrize("gap", [0, 1, 4, 14])
def test_contact_fades_with_the_height_above_the_ground(gap: int) -> None:
    depth_01 = floor().astype(np.float32)
    ground, near = ground_under(depth_01, (50 / W, 40 / H, 80 / W, 70 / H), (0.4, 0.8))
    everywhere = np.s_[:, :]
    assert (np.abs(depth_01 - plane_over((H, W), ground.plane, *everywhere)) < near)[60:].all()
    crop = crop_round((50, 40, 80, 70), (H, W), 4.0, (96, 96), "shift", "inclusive")
    own = np.ones((30, 30), bool), (50, 40 - gap, 80, 70 - gap)
    dark = contact(ground, own[0], np.full((30, 30), depth_01[69, 0]), own[1], crop)
    assert (dark.max() > 0.1) == (gap < 5)
    assert (dark.max() > 1e-6) == (gap < 14)
    farther = contact(ground, own[0], np.full((30, 30), depth_01[72, 0]), own[1], crop)
    assert farther.max() < dark.max() or gap == 14
    above = contact(ground, own[0], np.ones((30, 30), np.float32), own[1], crop)  # its foot is out of sight
    assert not above.any()


@pytest.mark.parametrize(
    ("extent", "any_ground"), [((0.4, 0.8), True), ((0.1, 0.3), False), ((0.0, 0.0), False)]
)
def test_what_would_hide_the_foot_is_no_ground(extent: tuple[float, float], any_ground: bool) -> None:
    _, near = ground_under(floor().astype(np.float32), (0.3, 0.4, 0.6, 0.75), extent)
    assert (near > 0) == any_ground


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "box", [(0.0, 0.55, 0.2, 0.95), (0.8, 0.4, 1.0, 0.8), (0.1, 0.02, 0.9, 0.99)], ids=str
)
def test_objects_at_the_border_and_as_large_as_the_image(kind: str, box: Any) -> None:
    result = composed(kind, box=box, post=False)
    assert result.changed_outside == 0
    assert result.report["shadow"]["pixels"] > 0


def layer(**more: Any) -> dict[str, Any]:
    thing = settings_of()
    images = {name: str(getattr(thing, name)) for name in ("object", "object_mask")}
    return {**images, "name": "block", "box": list(BOX), **more}


def job_of(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    room = settings_of()
    files = {name: str(getattr(room, name)) for name in ("background", "background_depth")}
    return {**files, "painter": "paste", "device": "cpu", "eraser": "opencv", "layers": list(layers), **more}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "second", [[0.6, 0.4, 0.9, 0.8], [0.1, 0.45, 0.4, 0.85], [0.55, 0.3, 0.8, 0.7]], ids=str
)
def test_a_layer_darkens_no_object_of_an_earlier_one(kind: str, second: list[float], tmp_path: Path) -> None:
    first, other = layer(shadow=kind), {**layer(box=second), "name": "other"}
    jobs = (job_of(first, {**other, "shadow": shadow}) for shadow in (kind, "off"))
    result, alone = (compose_layers(job, JobNetworks()) for job in jobs)
    assert (result.image_u8 != alone.image_u8).any()
    thing = result.scene.things["block"].mask
    assert thing.any()
    assert np.array_equal(result.image_u8[thing], alone.image_u8[thing])
    path = save_job_layers(result, tmp_path / "a.png", False)
    _, layers = opened(path)
    assert np.array_equal(merged(layers)[..., :3], result.image_u8)


def test_what_a_layer_darkens_comes_back_with_it() -> None:
    networks = JobNetworks()
    result = compose_layers(job_of(layer(), shadow=CONTACT), networks)
    alone = composed()
    assert np.array_equal(result.image_u8, alone.images_u8[0])
    assert result.report["layers"][0]["shadow"]["pixels"] > 0
    assert result.report["drift"]["changed_outside"] == 0
    assert np.array_equal(result.edit_mask, alone.edit_mask)
    gone = compose_layers(job_of(layer(shadow=CONTACT), {"erase": "block"}), networks)
    assert np.array_equal(gone.image_u8, gone.background.own_u8)
    moved = compose_layers(
        job_of(layer(), {"move": "block", "box": [0.05, 0.4, 0.3, 0.8]}, shadow=CONTACT), networks
    )
    there = compose_layers(job_of(layer(box=[0.05, 0.4, 0.3, 0.8]), shadow=CONTACT), networks)
    assert np.array_equal(moved.image_u8, there.image_u8)
