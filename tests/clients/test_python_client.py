"""The Python client: one file, the standard library only, against a real server."""

import ast
import email
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clients.python.bifrost_client import Bifrost, BifrostError, encode_form
from tests import pages
from tests.compose.serve.serving import COMPOSITE, H, W, decoded, listening, square, transparent, white
from tests.conftest import ROOT
from tests.images import room

ACCOUNT = "anne:se:cr\u00e9t"
CRATE = {"crate": {"box": [0.68, 0.45, 0.88, 0.8], "depth": 0.64}}
PICTURES = {name: COMPOSITE[name] for name in ("image", "reference_image", "reference_mask", "depth_map")}
BOX = {**PICTURES, "box": (0.3, 0.2, 0.7, 0.9), "depth": 0.6}


@pytest.fixture(scope="module")
def server(tmp_path_factory, small_compositor, small_depth_network):
    made = tmp_path_factory.mktemp("client")
    config = made / "compose.yaml"
    config.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n")
    with listening(made / "out", compose_config=config, auth=ACCOUNT, waiting=1) as started:
        yield started


@pytest.fixture
def client(server):
    return Bifrost(server[0] + "/", auth=ACCOUNT)


def test_the_file_needs_nothing_but_the_standard_library():
    tree = ast.parse((ROOT / "clients/python/bifrost_client.py").read_text())
    named = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in named} <= sys.stdlib_module_names


def test_composite_of_files_and_bytes_is_saved_and_nothing_replaced(client, tmp_path):
    path = tmp_path / 'caf\u00e9 "1".png'
    path.write_bytes(PICTURES["image"])
    seen = []
    made = client.edit(**{**BOX, "image": path}, n=2, seed=5, on_progress=lambda *now: seen.append(now))
    assert client.edit(**BOX, n=2, seed=5).images == made.images
    assert made.report["report"]["drift"][0]["changed_outside"] == 0
    assert [image["seed"] for image in [*made.report["data"]]] == [5, 6]
    assert all(step <= total for step, total in seen)
    assert [file.name for file in made.save(tmp_path / "out.png")] == ["out_0.png", "out_1.png"]
    assert (tmp_path / "out_1.png").read_bytes() == made.images[1]
    with pytest.raises(FileExistsError):
        made.save(tmp_path / "out.png")


def test_regions_with_masks_are_painted(client):
    masks = [transparent(square()), white(square(10, 70, 20))]
    regions = [{"prompt": "a red cube"}, {"prompt": ""}, {"prompt": "a ball", "box": [0, 0, 0.2, 0.2]}]
    made = client.edit(PICTURES["image"], mask=masks, regions=regions, steps=1)
    changed = (decoded(made.images[0]) != room(H, W)).any(2)
    allowed = square() | square(10, 70, 20)
    allowed[: round(0.2 * H), : round(0.2 * W)] = True
    assert not changed[~allowed].any()
    assert changed[allowed].mean() > 0.5
    assert len(made.report["report"]["prompts"]) == 3


def test_place_and_replay(client):
    sentence = {"instruction": "Place the thing to the left of the crate", "anchors": CRATE}
    places = client.place(**PICTURES, **sentence, candidates=2)
    made = client.edit(**PICTURES, **sentence)
    assert made.report["report"]["box"] == places[0]["box"]
    again = client.replay(made.images[0], **PICTURES)
    assert again.images == made.images
    assert again.report["identical"] is True


def test_example_of_the_page_runs(server, tmp_path, monkeypatch):
    [example] = pages.blocks(ROOT / "docs/serve.md", "py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "clients/python")
    Path("room.png").write_bytes(PICTURES["image"])
    Path("dog.png").write_bytes(COMPOSITE["reference_image"])
    place = '"http://127.0.0.1:7860")'
    assert place in example
    exec(example.replace(place, f'"{server[0]}", auth={ACCOUNT!r})'), {})
    assert decoded(Path("out.png").read_bytes()).shape == (H, W, 3)


def test_models_are_told(client):
    assert [model["kind"] for model in client.models()["data"]] == ["compose", "paint"]


@pytest.mark.parametrize(
    ("fields", "message", "status"),
    [
        ({"boxx": "1"}, "unknown field 'boxx'; did you mean 'box'?", 400),
        ({"box": [0.5, 0.5, 0.2, 0.2]}, "box must", 400),
        ({"image": b"no image"}, "image is not an image", 400),
        ({"image": "http://127.0.0.1/a.png"}, "image: addresses are not fetched here", 400),
        ({"steps": 0}, "steps must be in", 400),
    ],
    ids=str,
)
def test_refusals_have_the_words_of_the_server(client, fields, message, status):
    with pytest.raises(BifrostError, match=message) as found:
        client.edit(**{**BOX, **fields})
    assert found.value.status == status


def test_failed_job_and_wrong_account_are_told(server, client):
    with pytest.raises(BifrostError, match="no known relation"):
        client.place(**PICTURES, instruction="Hello there", anchors=CRATE)
    with pytest.raises(BifrostError, match="user and password are needed") as found:
        Bifrost(server[0], auth="anne:wrong").models()
    assert found.value.status == 401
    with pytest.raises(FileNotFoundError):
        client.edit(**{**BOX, "image": Path("none.png")})


def test_ctrl_c_cancels_the_job(server, client):
    def stop(step, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.edit(**BOX, steps=1000, n=10, on_progress=stop)
    newest = max(server[1].jobs.values(), key=lambda job: job.created)
    newest.finished.result(20)
    assert newest.state == "cancelled"


@pytest.mark.parametrize("patience", [0, 60])
def test_full_queue_is_waited_for_as_long_as_wanted(server, patience):
    gate, queue = threading.Event(), server[1]
    jobs = [queue.open("test")]
    queue.submit(jobs[0], lambda job, own: gate.wait(30) and {} or {})
    while jobs[0].state == "queued":
        threading.Event().wait(0.01)
    jobs.append(queue.submit(queue.open("test"), lambda job, own: {}))
    client = Bifrost(server[0], auth=ACCOUNT, patience=patience)
    threading.Timer(0.3 if patience else 2, gate.set).start()
    try:
        if patience:
            assert client.edit(**BOX).images
        else:
            with pytest.raises(BifrostError, match="1 jobs are waiting; try again in") as found:
                client.edit(**BOX)
            assert found.value.status == 429
    finally:
        gate.set()
        assert [job.finished.result(20).state for job in jobs] == ["done", "done"]


def test_form_keeps_bytes_lists_and_texts():
    body, kind = encode_form(
        {"mask": [b"\r\n--a", b"\x00"], "n": 2, "box": (0.1, 1), "flag": True, "seed": None}
    )

    parsed = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    parts = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in parsed.get_payload()
    ]
    assert [name for name, _ in parts] == ["mask", "mask", "n", "box", "flag"]
    assert [json.loads(data) for _, data in parts[2:]] == [2, [0.1, 1], True]
    assert np.array_equal([len(data) for _, data in parts[:2]], [5, 1])
