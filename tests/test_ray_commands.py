"""Every bulk command with --ray: what workers get can be pickled, and the files are those without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import inpainting.data.ops as ops
import inpainting.models.text_to_image.test as paintings
import llava_bifrost.build_dataset.__main__ as build
import llava_bifrost.predict.__main__ as predict
from datasets import tars
from datasets.scenes import __main__ as scenes
from inpainting.data.steps import describe
from ldm import precompute_depth
from ldm.images import write_png
from ldm.settings.cli import run_app
from run_inference import build_app as run_inference
from tests.batches import HIDDEN, batch, cutouts, dreambooth, job, write
from tests.conftest import ROOT
from tests.datasets import trees
from tests.images import room
from tests.inpainting.painting_set import write_set
from tests.inpainting.small_paintings import SIDE, write_inpainter, write_paintings
from tests.ldm.fake_ray import FakeRay

if TYPE_CHECKING:
    from tests.images import Case


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    fake = FakeRay({"CPU": 1.0}, {"CPU": 1.0}, pickles=True)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def assert_same(two: FakeRay, build_app: Any, *argv: str, code: int = 0) -> None:
    """`{}` in the words stands for the output."""
    for side, more in {"plain": (), "ray": ("--ray", "auto")}.items():
        assert not two.calls
        assert run_app(build_app, [word.format(side) for word in (*argv, *more)]) == code
    assert two.calls
    assert files(Path("ray")) == files(Path("plain")) != {}


def test_scenes_and_questions_about_them(two: FakeRay) -> None:
    sizes = ["--size", "32,32", "--reference-size", "16,16", "--count", "5"]
    assert_same(two, scenes.build_app, "render", "--out", "{}", *sizes)
    two.calls.clear()
    Path("plain").rename("scenes")
    Path("ray").rename("others")
    assert_same(two, build.build_app, "scenes", "--scenes", "scenes", "--out", "{}", "--placements", "0")


def test_depth_maps(two: FakeRay, small_depth_network: Path) -> None:
    for k, size in enumerate([(40, 56), (33, 47), (64, 40)]):
        write_png(Path(f"in/{k}.png"), room(*size))
    Path("in/3.png").write_bytes(b"no image")
    argv = ["in", "{}", "--model", str(small_depth_network), "--device", "cpu", "--batch", "2"]
    assert_same(two, precompute_depth.build_app, *argv)
    assert len(list(Path("ray").glob("*.png"))) == 3


def test_answers_of_a_locator(two: FakeRay) -> None:
    sentences = ["Place the cone on the floor", "Place the wolf behind the nothing", "Put it there"]
    lines = [{"image": f"{k}.png", "instruction": text} for k, text in enumerate(sentences)]
    for k in range(2):
        write_png(Path(f"{k}.png"), room())
    Path("jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = str(ROOT / "assets/tiny/locator")
    assert_same(
        two, predict.build_app, "jsonl", "--jobs", "jobs.jsonl", "--out", "{}/a.jsonl", "--locator", small
    )
    answers = [json.loads(line) for line in Path("ray/a.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["1", "2", "3"]
    assert "2.png does not exist" in answers[2]["error"]


def said(mllm: object, images: list[np.ndarray], *more: Any) -> list[Any]:
    return [f"The image shows {int(image.sum())} {len(images)}." for image in images]


def test_descriptions_and_captions(two: FakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = write_set(tmp_path / "set")
    argv = ["--annotations-path", str(made.annotations), "--image-dir", str(made.images)]
    assert run_app(ops.build_app, ["make-entities-dataset", *argv, "--out-dir", "entities"]) == 0
    monkeypatch.setattr(describe, "open_model", lambda *given, **more: None)
    described = lambda *given: [{"description": text, "entities": {}} for text in said(*given)]  # noqa: E731
    monkeypatch.setattr(describe, "describe_paintings", described)
    monkeypatch.setattr(describe, "caption_crops", said)
    argv = ["annotate-images", "--image-dir", str(made.images), "--model-id", "m", "--batch-size", "2"]
    assert_same(two, ops.build_app, *argv, "--out", "{}/annotations.json")
    two.calls.clear()
    for side in ("plain", "ray"):
        Path(side).rename(f"{side}_annotations")
    argv = ["caption-masks", "--entities-dir", "entities", "--model-id", "m", "--batch-size", "5"]
    assert_same(two, ops.build_app, *argv, "--output-dir", "{}")


def test_paintings_are_filled(two: FakeRay, tmp_path: Path) -> None:
    write_inpainter(tmp_path / "model")
    write_paintings(tmp_path / "data", {"test": 4})
    config = "configs/inpainting/text_to_image/test/sd_2_inp_rca.yaml"
    keys = ["output_dir={}", "pretrained=model", "data.data_dir=data", f"data.resolution={SIDE}", "workers=0"]
    keys += ["batch=3", "dtype=fp32", "lora=null", "paint.scheduler=ddim", "paint.steps=2"]
    argv = ["generate", "--config-path", str(ROOT / config), *keys]
    assert_same(two, paintings.build_app, *argv)
    assert len(list(Path("ray").glob("*.png"))) == 4


def test_tar_shards(two: FakeRay) -> None:
    trees.TREES["lvis"](Path("data"))
    config = str(ROOT / "configs/datasets.yaml")
    assert_same(two, tars.build_app, "--source", "lvis", "--out", "{}", "--items", "1", "--config", config)


def test_composites(two: FakeRay, case: Case) -> None:
    write(case, *(job(case, name=f"a{n}", seed=n) for n in range(3)), job(case, name="bad", **HIDDEN))
    sides = []
    for more in ((), ("--ray", "auto")):
        assert batch(case, *more) == 1
        sides.append(
            {n: d for n, d in files(case.folder / "many").items() if not n.startswith("a") or "png" in n}
        )
        (case.folder / "many").rename(case.folder / f"many{len(more)}")
    assert sides[0] == sides[1]
    assert len(sides[0]) == 4
    assert two.calls
    assert dreambooth(case, *cutouts(case.folder / "test"), "--ray", "auto") == 0
    assert len(list((case.folder / "db").rglob("*.png"))) == 4


def test_a_job_of_layers(two: FakeRay, case: Case) -> None:
    layer = {key: value for key, value in job(case).items() if key not in ("background", "background_depth")}
    for key in ("object", "object_mask"):
        layer[key] = str(case.folder / layer[key])
    given = {"background": str(case.folder / "room.png"), "background_depth": str(case.folder / "depth.png")}
    Path("job.json").write_text(json.dumps({**given, "layers": [layer]}))
    for side, more in {"plain": [], "ray": ["--ray", "auto"]}.items():
        assert run_app(run_inference, ["job", "job.json", "--out", f"{side}/a.png", *more]) == 0
    assert two.calls
    assert Path("ray/a.png").read_bytes() == Path("plain/a.png").read_bytes()
