"""Scoring composites of any system: what is perfect scores perfect, what is wrong does not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from benchmarks.small_models import write_clip
from cldm.evaluate.cases import neighbours
from compose.benchmark import score as score_module
from compose.benchmark.__main__ import build_app
from compose.benchmark.score import ScoreNetworks, drift, order, score, score_case
from compose.benchmark.settings import ScoreSettings
from datasets.benchmark import Anchor, BenchmarkCase, write_benchmark
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import depth_01, read_options, read_shard, render_shards
from ldm.files import write_atomic
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from tests.images import room, thing
from tests.ldm.small_metrics import write_dino, write_inception

BOX = (0.25, 0.25, 0.75, 0.75)


class World:
    """Rendered scenes as a benchmark: backgrounds, cut-outs, outlines, and the true composites."""

    def __init__(self, home: Path) -> None:
        self.home, self.truth, self.flipped, self.depths = home, home / "truth", home / "flipped", {}
        render_shards(
            StoreSettings(out=home / "scenes", count=24, split="eval", size=(64, 64), reference_size=(32, 32),
                          window="object", occluded=1.0)
        )  # fmt: skip
        path, cases, images, annotations = home / "scenes/shard-00000.safetensors", [], [], []
        shard, options = read_shard(path), read_options(path)
        for row, facts in enumerate(shard.facts):
            near = neighbours(facts, shard.instances_u8[row], shard.amodal[row])
            if not near:
                continue
            name, placed, other = f"{row:03d}", near[0].placed, near[0].other
            write_png(home / f"pictures/{name}.png", shard.without_u8[row])
            write_png(self.truth / f"{name}_thing.png", shard.image_u8[row])
            alpha_u8 = shard.reference_mask[row].astype(np.uint8) * 255
            write_png(home / f"objects/thing/{name}.png", shard.reference_u8[row], alpha_u8=alpha_u8)
            outline = run_lengths.encode(np.asfortranarray(other.astype(np.uint8)))
            coded = {**outline, "counts": outline["counts"].decode()}
            whole = {"image_id": row, "category_id": 1, "bbox": [0, 0, 9, 9]}
            annotations.append({"id": row, **whole, "segmentation": coded})
            images.append({"id": row, "file_name": f"{name}.png", "height": 64, "width": 64})
            relation = "in front of" if near[0].placed_is_nearer else "behind"
            box = tuple(float(np.clip(edge, 0, 1)) for edge in facts.boxes01[facts.removed])
            anchor = Anchor("other", row, (0.0, 0.0, 1.0, 1.0))
            cases.append(
                BenchmarkCase(
                    f"{name}_thing", f"{name}.png", "thing", f"{name}.png", relation, anchor, box, "-"
                )
            )
            true = depth_01(shard.depth_u16[row])
            swapped = np.where(placed, np.median(true[other]), np.where(other, np.median(true[placed]), true))
            self.depths[shard.image_u8[row].tobytes()] = (true, swapped)
            wrong_u8 = near[0].flipped_image(facts.seed, options, shard.image_u8[row], shard.without_u8[row])
            there, swaps = near[0].flipped(), (np.median(true[other]), np.median(true[placed]))
            seen = np.where(there.placed, swaps[0], np.where(there.other, swaps[1], true))
            self.depths[wrong_u8.tobytes()] = (seen, seen)
            write_png(self.flipped / f"{name}_thing.png", wrong_u8)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "other"}]}
        write_atomic(home / "instances.json", json.dumps(document).encode())
        roots = {"pictures": home / "pictures", "objects": home / "objects"}
        self.manifest = write_benchmark(home / "manifest.json", "scenes", 0, cases, roots)

    def settings(self, results: Path, **more: object) -> ScoreSettings:
        home = self.home
        paths = {"manifest": home / "manifest.json", "instances": home / "instances.json",
                 "images": home / "pictures", "objects": home / "objects"}  # fmt: skip
        return ScoreSettings(results=results, **{**paths, **more})  # type: ignore[arg-type]


class Oracle:
    """A depth network that knows: true depth, or the depth of the scene with the two solids exchanged."""

    def __init__(self, world: World, flipped: bool) -> None:
        self.world, self.flipped = world, flipped

    def estimate(self, rgb_u8: np.ndarray) -> np.ndarray:
        known = self.world.depths.get(rgb_u8.tobytes())
        return np.full(rgb_u8.shape[:2], 0.5, np.float32) if known is None else known[int(self.flipped)]


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that somebody has pulled are not found."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def scored(world: World, monkeypatch: pytest.MonkeyPatch, depth_model: Path, flipped: bool) -> dict:
    monkeypatch.setattr(score_module.DepthEstimator, "load", lambda *_, **__: Oracle(world, flipped))
    return score(world.settings(world.truth, depth_model=depth_model))["folders"][0]


def test_true_renders_score_perfect_order_and_flipped_images_near_zero(
    world: World, monkeypatch: pytest.MonkeyPatch, small_depth_network: Path
) -> None:
    assert len(world.manifest.cases) >= 6
    assert {case.relation for case in world.manifest.cases} == {"in front of", "behind"}
    right = scored(world, monkeypatch, small_depth_network, flipped=False)["depth_order"]
    misread = scored(world, monkeypatch, small_depth_network, flipped=True)["depth_order"]
    assert right["n"] == misread["n"] >= 6
    assert right["mean"] == 1.0
    assert misread["mean"] <= 0.1
    wrong = score(world.settings(world.flipped, depth_model=small_depth_network))["folders"][0]["depth_order"]
    assert wrong["n"] >= 0.6 * right["n"], "the wrong solid in front hides some objects whole"
    assert wrong["mean"] <= 0.1


def test_an_untouched_background_has_no_drift_no_seam_and_no_order(
    world: World, small_depth_network: Path, tmp_path: Path
) -> None:
    for case in world.manifest.cases:
        write_png(
            tmp_path / f"same/{case.id}.png", read_image(world.home / "pictures" / case.background).rgb_u8
        )
    body = score(world.settings(tmp_path / "same", depth_model=small_depth_network))
    found = body["folders"][0]
    assert found["drift_bytes"]["mean"] == found["drift_pixels"]["mean"] == found["seam"]["mean"] == 0
    assert found["drift_psnr_db"]["mean"] == 100
    assert found["depth_order"]["mean"] == 0, "nothing stands in front where it should"
    assert set(body["skipped"]) == {"dino", "dinov2", "clip_i", "dreamsim", "inception"}
    assert body["networks"]["depth"]["sha256"]


def test_two_folders_are_compared_case_by_case(
    world: World, small_depth_network: Path, tmp_path: Path
) -> None:
    for case in world.manifest.cases:
        result_u8 = read_image(world.truth / f"{case.id}.png").rgb_u8
        worse_u8 = np.minimum(result_u8, 250)
        worse_u8[12:-12, 12:-12] += np.uint8(5)
        write_png(tmp_path / f"worse/{case.id}.png", worse_u8)
    out = tmp_path / "score.json"
    flags = {**asdict(world.settings(tmp_path / "worse")), "against": world.truth}
    names = ("results", "manifest", "instances", "images", "objects", "against")
    arguments = [text for name in names for text in (f"--{name}", str(flags[name]))]
    assert (
        run_app(
            build_app, ["score", *arguments, "--depth-model", str(small_depth_network), "--out", str(out)]
        )
        == 0
    )
    body = json.loads(out.read_text())
    change = body["first_minus_second"]
    assert change["drift_pixels"]["mean"] > 0.1
    assert change["drift_psnr_db"]["mean"] < -1
    assert change["seam"]["mean"] > 0
    assert change["seam"]["p"] < 0.05
    table = out.with_suffix(".md").read_text()
    assert "| first - second | p |" in table
    assert "skipped, dino:" in table
    assert read_image(tmp_path / "score_sheet.png").rgb_u8.std() > 10


class Loud(torch.nn.Module):
    """Features of a usable size: those of an untrained network are near zero."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels) * 1e6


@pytest.mark.slow
def test_networks_that_are_there_judge_likeness_and_distance(
    world: World, small_depth_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = score_module.load_inception
    monkeypatch.setattr(score_module, "load_inception", lambda path: Loud(read(path)))
    networks = {
        "dino": write_dino(tmp_path / "dino"), "clip": write_clip(tmp_path / "clip"),
        "inception": write_inception(tmp_path / "inception.pth"),
    }  # fmt: skip
    networks["depth_model"] = small_depth_network
    settings = world.settings(world.truth, against=world.truth, real=world.truth, **networks)
    body = score(settings)
    found = body["folders"][0]
    assert set(body["skipped"]) == {"dinov2", "dreamsim"}
    assert set(body["networks"]["dino"]["sha256"]) == {"model.safetensors"}
    assert abs(found["fid"]["mean"]) < 1e-4, "composites against themselves"
    for name in ("dino", "clip_i"):
        assert -1 <= found[name]["mean"] < 1
        assert body["first_minus_second"][name] == {
            "n": len(world.manifest.cases), "mean": 0, "low": 0, "high": 0, "p": 1
        }  # fmt: skip
    strange = tmp_path / "strange"
    for case in world.manifest.cases:
        write_png(strange / f"{case.id}.png", np.full((64, 64, 3), 255, np.uint8))
    other = score(world.settings(strange, real=world.truth, **networks))
    assert other["folders"][0]["fid"]["mean"] > found["fid"]["mean"]
    assert other["folders"][0]["kid"]["mean"] > found["kid"]["mean"]


def test_an_object_pasted_as_it_is_is_like_itself(small_depth_network: Path, tmp_path: Path) -> None:
    rgb_u8, before_u8 = thing(32)[0], room(64, 64)
    after_u8 = before_u8.copy()
    after_u8[16:48, 16:48] = rgb_u8
    write_png(tmp_path / "pictures/a.png", before_u8)
    write_png(tmp_path / "objects/cup/0.png", rgb_u8, alpha_u8=np.full((32, 32), 255, np.uint8))
    write_png(tmp_path / "a_cup.png", after_u8)
    case = BenchmarkCase("a_cup", "a.png", "cup", "0.png", "left of", Anchor("b", 1, BOX), BOX, "-")
    roots = {"pictures": tmp_path / "pictures", "objects": tmp_path / "objects"}
    settings = ScoreSettings(
        results=tmp_path, manifest=tmp_path, images=roots["pictures"], objects=roots["objects"],
        depth_model=small_depth_network,
        dino=write_dino(tmp_path / "dino"), clip=write_clip(tmp_path / "clip"),
    )  # fmt: skip
    judges = ScoreNetworks(settings)
    pasted, _ = score_case(case, roots, tmp_path / "a_cup.png", judges, None)
    absent, _ = score_case(case, roots, tmp_path / "pictures/a.png", judges, None)
    for name in ("dino", "clip_i"):
        assert pasted[name] == pytest.approx(1, abs=1e-5)
        assert absent[name] < pasted[name] - 1e-4


def test_a_pasted_rectangle_has_a_seam_and_an_outline_has_not() -> None:
    before_u8 = room(128, 128)
    y, x = np.mgrid[:128, :128]
    disk = (x - 64) ** 2 + (y - 64) ** 2 < 30**2
    outline_u8 = np.where(disk[..., None], 255 - before_u8, before_u8)
    rectangle_u8 = outline_u8.copy()
    rectangle_u8[16:112, 16:112] = np.where(
        disk[16:112, 16:112, None], outline_u8[16:112, 16:112], before_u8[16:112, 16:112] + 4
    )
    none, rectangle, outline = (
        drift(before_u8, after_u8, BOX)["seam"] for after_u8 in (before_u8, rectangle_u8, outline_u8)
    )
    assert none == 0
    assert 3.9 < rectangle < 4.1
    assert outline < 0.5 * np.abs(outline_u8.astype(float) - before_u8)[disk].mean()
    assert drift(before_u8, outline_u8, BOX)["drift_bytes"] == 0
    assert drift(before_u8, rectangle_u8, BOX)["drift_bytes"] > 0


def test_order_says_nothing_where_none_is_asked_or_seen() -> None:
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    before_u8, (placed, anchor) = room(64, 64), np.zeros((2, 64, 64), bool)
    placed[20:40, 30:45], anchor[20:40, 15:30] = True, True
    after_u8 = np.where(placed[..., None], 255 - before_u8, before_u8)
    assert order(depth, (before_u8, after_u8), BOX, anchor, True) == 1
    assert order(depth, (before_u8, after_u8), BOX, anchor, False) == 0
    assert order(depth, (before_u8, before_u8), BOX, anchor, False) is None
    assert order(depth, (before_u8, before_u8), BOX, anchor, True) == 0
    assert order(depth, (before_u8, after_u8), BOX, anchor & False, False) is None


def test_what_is_placed_is_what_changed_inside_the_box() -> None:
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    before_u8, anchor = room(64, 64), np.zeros((64, 64), bool)
    anchor[20:30, 30:40] = True
    after_u8 = before_u8.copy()
    after_u8[2:15, 2:15] = 255 - after_u8[2:15, 2:15]  # outside the box
    after_u8[20:48:3, 20:48:3] = 255 - after_u8[20:48:3, 20:48:3]  # single pixels
    assert order(depth, (before_u8, after_u8), BOX, anchor, False) is None
    after_u8[20:30, 20:30] = 255 - before_u8[20:30, 20:30]
    assert order(depth, (before_u8, after_u8), BOX, anchor, False) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "a"], "missing --images, --manifest, --objects"),
        (["--manifest", "a"], "missing --images, --objects, --results"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message, capsys) -> None:
    assert run_app(build_app, ["score", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_wrong_result_is_named(world: World, small_depth_network: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no composite \d+_thing.png"):
        score(world.settings(tmp_path, depth_model=small_depth_network))
    for case in world.manifest.cases:
        write_png(tmp_path / f"{case.id}.png", room(10, 12))
    with pytest.raises(ValueError, match=r"_thing.png is 12 x 10 pixels, its background is 64 x 64"):
        score(world.settings(tmp_path, depth_model=small_depth_network))
