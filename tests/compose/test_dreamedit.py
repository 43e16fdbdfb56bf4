"""DreamEditBench as SHINE arranged it becomes cut-outs and a manifest, whose jobs and scores need no COCO."""

import json

import numpy as np
import pytest
from PIL import Image

from compose.benchmark.__main__ import build_app
from compose.benchmark.dreamedit import build_dreamedit
from compose.benchmark.score import score
from compose.benchmark.settings import ScoreSettings
from datasets.benchmark import read_benchmark
from ldm.images import read_image
from ldm.settings.cli import run_app


@pytest.fixture
def bench(tmp_path):
    """Three classes with one background each; the second has two."""
    folder = tmp_path / "Shine-DreamEditBench"
    rng = np.random.default_rng(0)
    for number, name in enumerate(("backpack", "dog", "vase")):
        for part in ("bg", "fg"):
            (folder / name / part).mkdir(parents=True)
        mask = np.zeros((40, 40), np.uint8)
        mask[8:32, 10:30] = 255
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name / "fg/03.jpg")
        Image.fromarray(mask).save(folder / name / "fg/03.png")
        rows = []
        for view in range(1 + (name == "dog")):
            image = rng.integers(0, 256, (96, 96, 3), np.uint8)
            Image.fromarray(image).save(folder / name / f"bg/{view:02d}.jpg", quality=100)
            box = [192, 192 + 96 * number, 576, 768]
            rows.append({"image": f"{view:02d}.jpg", "bbox": box, "source_prompt": f"a {name} in a park"})
        (folder / name / "bg/content.json").write_text(json.dumps(rows))
    (folder / "README").mkdir()
    return folder


def test_boxes_prompts_and_cut_outs_are_those_of_the_benchmark(bench, tmp_path):
    manifest = build_dreamedit(bench, tmp_path / "out", "03")
    assert [case.id for case in manifest.cases] == ["backpack_00", "dog_00", "dog_01", "vase_00"]
    assert manifest.cases[1].box01_xyxy == (0.25, 0.375, 0.75, 1.0)
    assert manifest.cases[3].instruction == "a vase in a park"
    assert manifest == read_benchmark(tmp_path / "out/manifest.json")
    assert all(manifest.files.values())  # all are hashed
    cut = read_image(tmp_path / "out/objects/dog/03.png")
    assert np.array_equal(cut.rgb_u8, read_image(bench / "dog/fg/03.jpg").rgb_u8)
    assert int((cut.alpha_u8 == 255).sum()) == 24 * 20


def test_jobs_and_verify_take_the_manifest_without_annotations(bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_app(build_app, ["dreamedit", str(bench), "--out", str(out)]) == 0
    files = ["--images", str(bench), "--objects", str(out / "objects")]
    assert run_app(build_app, ["verify", str(out / "manifest.json"), *files]) == 0
    jobs = ["jobs", str(out / "manifest.json"), *files, "--out", str(tmp_path / "jobs.jsonl")]
    assert run_app(build_app, jobs) == 0
    first, *others = map(json.loads, (tmp_path / "jobs.jsonl").read_text().splitlines())
    assert len(others) == 3
    assert first == {
        "name": "backpack_00", "background": str(bench / "backpack/bg/00.jpg"), "seed": 0, "shadow": "off",
        "object": str(out / "objects/backpack/03.png"), "box": [0.25, 0.25, 0.75, 1.0]}  # fmt: skip


def test_composites_are_scored_without_annotations(bench, tmp_path, small_depth_network):
    out, results = tmp_path / "out", tmp_path / "results"
    results.mkdir()
    for case in build_dreamedit(bench, out, "03").cases:
        image = read_image(bench / case.background).rgb_u8.copy()
        if case.id == "dog_01":
            image[:4, :4] = 0  # far from the box
        Image.fromarray(image).save(results / f"{case.id}.png")
    networks = dict.fromkeys(("dino", "dinov2", "clip", "dreamsim", "inception"), tmp_path / "none")
    given = {
        "results": results,
        "manifest": out / "manifest.json",
        "images": bench,
        "objects": out / "objects",
    }
    found = score(ScoreSettings(**given, **networks, depth_model=small_depth_network, device="cpu"))
    (report,) = found["folders"]
    assert report["cases"] == 4
    assert report["drift_pixels"]["mean"] > 0
    assert report["drift_bytes"]["n"] == 4
    assert "instances" in found["skipped"]["depth_order"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dog/bg/content.json", "{}", "must hold a JSON list"),
        ("dog/bg/content.json", '[{"image": "00.jpg"}]', "content.json: entry 1: 'bbox'"),
        (
            "dog/bg/content.json",
            '[{"image": "a.jpg", "bbox": [0, 0, 900, 9]}]',
            "entry 1: .*leaves the image",
        ),
        ("dog/bg/content.json", '[{"image": "a.jpg", "bbox": [0, 0, 9]}]', "entry 1: .*got 3 numbers"),
        ("dog/fg/03.png", "", "03.png is empty"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(file, text, message, bench, tmp_path):
    (bench / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        build_dreamedit(bench, tmp_path / "out", "03")
    assert not (tmp_path / "out").exists()


def test_a_view_or_a_folder_that_is_not_there_is_named(bench, tmp_path):
    with pytest.raises(ValueError, match="07.jpg does not exist"):
        build_dreamedit(bench, tmp_path / "out", "07")
    with pytest.raises(ValueError, match="has no folder CLASS/bg with a content.json"):
        build_dreamedit(bench / "dog", tmp_path / "out", "03")
