"""The page without a browser: controls of settings, errors in words, files of jobs, what About says."""

import json
from dataclasses import fields
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from compose.serve import page, page_compose, page_regions
from compose.serve.app import make_queue
from compose.serve.jobs import Job
from compose.serve.page_jobs import ALLOWED, build_page, jobs_of, networks_here, row_of
from compose.serve.page_regions import RegionsDesk
from compose.serve.settings import SERVERS, ServeSettings
from compose.serve.uploads import check_image
from compose.settings import ComposeSettings
from inpainting.dream import DreamSettings
from ldm.images import write_png
from tests.compose.serve.serving import running
from tests.images import Case, room


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (ComposeSettings, page_compose.CONTROLS),
        (DreamSettings, page_regions.CONTROLS),
    ],
    ids=["compose", "regions"],
)
def test_controls_have_defaults_ranges_and_helps_of_the_settings(schema, names):
    declared = {field.name: field for field in fields(schema)}
    for name, control in zip(names, page.controls_of(schema, names), strict=True):
        about = declared[name].metadata
        assert control.info == about["help"]
        assert control.value == (
            declared[name].default if declared[name].default is not None else control.value
        )
        assert control.value in (declared[name].default, "", None)
        if about["choices"]:
            assert set(about["choices"]) <= {value for _, value in control.choices}
        elif isinstance(control, gr.Number):
            assert (control.minimum, control.maximum) == (about["low"], about["high"])


def test_images_with_too_many_pixels_are_refused(tmp_path: Path):
    write_png(tmp_path / "a.png", np.zeros((1000, 1001, 3), np.uint8))
    settings = ServeSettings(max_megapixels=1)
    with pytest.raises(ValueError, match="a.png has 1001 x 1000 = 1.0 million pixels; at most 1 million"):
        check_image("a.png", tmp_path / "a.png", settings)
    assert check_image("a.png", tmp_path / "a.png", ServeSettings()) == "png"


# regions


def test_masks_are_painted_and_loaded(tmp_path: Path, root: Path):
    painting = RegionsDesk()
    with pytest.raises(ValueError, match="give the image first"):
        painting.load(root / "assets/regions/left.png")
    with pytest.raises(ValueError, match="give an image, and paint or load a mask"):
        painting.files()
    painting.take(root / "assets/examples/tent/room.png")
    h, w = painting.image.size
    painting.stroke(0, [[0.2, 0.2], [0.4, 0.4]], 0.03, adds=True)
    painting.load(root / "assets/regions/left.png")
    coloured = np.zeros((h, w, 3), np.uint8)
    coloured[5:30, 5:30], coloured[40:60, 40:80] = (0, 0, 255), (255, 0, 0)
    write_png(tmp_path / "coloured.png", coloured)
    painting.load(tmp_path / "coloured.png")
    assert [mask.sum() for mask in painting.masks[2:]] == [20 * 40, 25 * 25]
    assert list(painting.files()) == ["image", "mask 1", "mask 2", "mask 3", "mask 4"]
    painting.stroke(0, [[0.2, 0.2], [0.4, 0.4]], 0.06, adds=False)
    assert len(painting.masks) == 3
    write_png(tmp_path / "small.png", coloured[:50])
    with pytest.raises(ValueError, match="small.png must have the size of the image"):
        painting.load(tmp_path / "small.png")
    write_png(tmp_path / "room.png", room(20, 30))
    painting.take(tmp_path / "room.png")
    assert painting.masks == []


# a file of jobs

LINE = {
    "background": "room.png",
    "object": "thing.png",
    "object_mask": "mask.png",
    "box": [0.1, 0.1, 0.6, 0.9],
}


def sent(case: Case, tmp_path: Path, *lines: dict) -> list[Path]:
    """The files that a visitor gives."""
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    names = ("room.png", "thing.png", "mask.png", "depth.png", "target.png")
    return [tmp_path / "jobs.jsonl", *(case.folder / name for name in names)]


def test_jobs_name_the_files_that_came_with_them(case: Case, tmp_path: Path):
    paths = sent(case, tmp_path, {"name": "a", **LINE}, {**LINE, "steps": 2, "background_depth": "depth.png"})
    (job_folder := tmp_path / "job").mkdir()
    jobs = jobs_of(paths, job_folder, ServeSettings())
    assert [job.name for job in jobs] == ["a", "000002"]
    assert jobs[1].settings.steps == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "assets/tiny/compositor"}, "line 1: model cannot be set here"),
        ({"locator": "geometric"}, "line 1: locator cannot be set here"),
        ({"anchors": "anchors.json"}, "line 1: anchors cannot be set here"),
        ({"device": "cpu"}, "line 1: device cannot be set here"),
        ({"background": "/etc/passwd"}, "line 1: background '/etc/passwd' is not among the files"),
        ({"background": "../room.png"}, "line 1: background '../room.png' is not among the files"),
        ({"object": "other.png"}, "line 1: object 'other.png' is not among the files"),
        ({"background": 5}, "line 1: background 5 is not among the files"),
        ({"steps": 0}, r"steps must be in \[1, 1000\], got 0"),
        ({"box": [0.5, 0.5, 0.1, 0.9]}, "it is inverted"),
        ({"name": "../a"}, "name must be letters, digits"),
    ],
    ids=str,
)
def test_jobs_that_cannot_be_done_are_refused(case: Case, tmp_path: Path, change, message):
    (tmp_path / "job").mkdir()
    with pytest.raises(ValueError, match=message):
        jobs_of(sent(case, tmp_path, {**LINE, **change}), tmp_path / "job", ServeSettings())


@pytest.mark.parametrize("count", [0, 2])
def test_one_file_of_jobs_is_needed(case: Case, tmp_path: Path, count):
    paths = sent(case, tmp_path, LINE)
    paths = paths[1:] if count == 0 else [*paths, tmp_path / "more.jsonl"]
    with pytest.raises(
        ValueError, match=f"one .jsonl file is needed, with the images that it names; got {count}"
    ):
        jobs_of(paths, tmp_path, ServeSettings())


def test_no_key_of_a_job_is_the_servers():
    assert not ALLOWED & SERVERS


def test_rows_say_what_became_of_a_job(tmp_path: Path):
    job = Job("0" * 32, "compose", tmp_path)
    assert row_of("a", None) == ["a", "waiting", ""]
    assert row_of("a", job) == ["a", "queued", ""]
    job.state, job.step, job.total = "running", 2, 8
    assert row_of("a", job) == ["a", "running", "step 2 of 8"]
    report = {"visible_fraction": 0.614, "drift": [{"changed_outside": 0}] * 2, "box": [0, 0, 1, 1]}
    report |= {"depth": {"far": 0.1, "near": 0.2, "source": "range"}, "object_mask_doubts": []}
    job.state, job.result = "done", {"report": {**report, "seconds": {"total": 1}, "device": "cpu"}}
    assert row_of("a", job) == ["a", "done", "61 % visible, 0 pixels changed outside"]
    job.state, job.error, job.result = "failed", "background is no image", None
    assert row_of("a", job) == ["a", "failed", "background is no image"]


# the whole


def test_about_names_the_networks_and_what_they_are(tmp_path: Path):
    settings = ServeSettings(out=tmp_path / "out", devices=("cpu",))
    queue = make_queue(settings)
    try:
        lines = networks_here(queue, settings)
    finally:
        queue.close()
    assert [line.split("**")[1] for line in lines] == [
        "compositor",
        "depth network",
        "locator",
        "inpainter",
        "prompt writer",
    ]
    assert all("rendered" in line and "not loaded yet" in line for line in lines)
    assert not any(str(Path.cwd()) in line for line in lines)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    queue = make_queue(ServeSettings(out=tmp_path_factory.mktemp("page") / "out", devices=("cpu",)))
    try:
        return build_page(page.Site(queue, ServeSettings()))
    finally:
        queue.close()


def test_nothing_of_the_page_is_an_endpoint_for_programs(blocks):
    ours = [f for f in blocks.fns.values() if f.targets and f.targets[0][1] != "load"]
    assert len(ours) > 40
    assert {function.api_visibility for function in ours} == {"private"}
    assert not blocks.get_api_info()["named_endpoints"]


def test_no_event_goes_through_the_queue_of_gradio(blocks):
    """Its answers are lost where an event joins the stream while that is being closed."""
    ours = [function for function in blocks.fns.values() if function.fn]
    assert len(ours) > 35
    assert [function.targets for function in ours if function.queue] == []
    assert [function.targets for function in ours if function.types_generator] == []


def test_an_answer_that_is_late_holds_up_no_other(blocks):
    ours = [function for function in blocks.fns.values() if function.fn]
    others = {function.targets[0][1] for function in ours if function.trigger_mode != "multiple"}
    assert others == {"drag"}


def test_every_event_that_reads_a_surface_brings_what_was_done_on_it(blocks):
    logs = {block._id for block in blocks.blocks.values() if isinstance(block, gr.JSON) and not block.visible}
    readers = [f for f in blocks.fns.values() if logs & {part._id for part in f.inputs} and f.targets[0][0]]
    direct = [f for f in readers if f.targets[0][1] != "success"]
    assert len(direct) > 20
    assert all("acts" in f.js for f in direct)


@pytest.mark.parametrize("auth", [None, "anne:secret"])
def test_the_page_stands_behind_the_guard(tmp_path: Path, auth):
    with running(tmp_path / "out", page=True, auth=auth) as client:
        for path in ("/", "/config", "/gradio_api/info"):
            assert client.get(path).status_code == (200 if auth is None else 401), path
        known = client.get("/", auth=("anne", "secret"))
        assert known.status_code == 200
        assert "Bifrost" in known.text
        assert client.get("/healthz", auth=("anne", "secret")).status_code == 200
        assert client.get("/gradio_api/file=/etc/passwd", auth=("anne", "secret")).status_code in (403, 404)
