"""The ComfyUI pack: loaded as ComfyUI does from a folder of another name, and run against a real server."""

import asyncio
import json
import shutil
import sys

import numpy as np
import pytest
import tomllib
import torch

from tests.clients.comfy_stub import Comfy, Interrupted, load_pack
from tests.compose.serve.serving import H, W, decoded, listening, square
from tests.conftest import ROOT
from tests.images import room, room_depth, thing

PACK = ROOT / "clients" / "comfyui_bifrost"
ACCOUNT = "anne:se:cr\u00e9t"
NODES = ["BifrostPlaceBySentence", "BifrostCompose", "BifrostPaintRegions"]
CRATE = json.dumps({"crate": {"box": [0.68, 0.45, 0.88, 0.8], "depth": 0.64}})


@pytest.fixture(scope="module")
def server(tmp_path_factory, small_compositor, small_depth_network):
    made = tmp_path_factory.mktemp("comfy")
    config = made / "compose.yaml"
    config.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n")
    with listening(made / "out", compose_config=config, auth=ACCOUNT) as started:
        yield started


@pytest.fixture
def comfy(monkeypatch):
    made = Comfy()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def nodes(comfy, tmp_path, monkeypatch):
    folder = tmp_path / "custom_nodes" / "bifrost-compositing 1.0"
    shutil.copytree(PACK, folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if str(ROOT) not in path or "site-" in path])
    yield asyncio.run(load_pack(folder))
    for name in [name for name in sys.modules if name.startswith(str(tmp_path))]:
        del sys.modules[name]


@pytest.fixture
def run(nodes, server, monkeypatch):
    monkeypatch.setenv("BIFROST_SERVER", server[0] + "/")
    monkeypatch.setenv("BIFROST_AUTH", ACCOUNT)

    def execute(name, **given):
        schema = nodes[name].GET_SCHEMA()
        known = {port.id: port.given for port in schema.inputs}
        assert given.keys() <= known.keys()
        for port, about in known.items():
            if port not in given and not about.get("optional"):
                given[port] = about["default"] if "default" in about else about["options"][0]
        output = asyncio.run(nodes[name].execute(**given)).args
        assert len(output) == len(schema.outputs)
        return output

    return execute


def tensor(array, scale=255):
    return torch.from_numpy(np.asarray(array, np.float32) / scale)[None]


BACKGROUND, OBJECT, OBJECT_MASK = tensor(room(H, W)), tensor(thing()[0]), tensor(thing()[1], 1)
DEPTH = tensor(np.repeat(room_depth(H, W)[..., None], 3, 2), 1)
PLACED = {"background": BACKGROUND, "object": OBJECT, "object_mask": OBJECT_MASK, "depth_map": DEPTH}
BOX = {"box": "0.3,0.2,0.7,0.9", "depth": "0.6"}


def as_u8(image):
    return np.rint(image.numpy() * 255).astype(np.uint8)


def test_pack_is_found_by_its_path_and_says_what_it_needs(nodes):
    assert list(nodes) == NODES
    about = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert about["project"]["dependencies"] == []
    assert about["project"]["license"] == {"text": "Apache-2.0"}
    assert {"PublisherId", "DisplayName"} <= about["tool"]["comfy"].keys()
    for source in PACK.glob("*.py"):
        assert not any(word in source.read_text() for word in ("eval(", "exec(", "subprocess", "sys.path"))


@pytest.mark.parametrize("name", NODES)
def test_schema_may_be_asked_for_again(nodes, name):
    first, second = nodes[name].GET_SCHEMA(), nodes[name].GET_SCHEMA()
    assert first == second
    assert first.category == "Bifrost"
    assert first.description


def test_composite_keeps_every_other_pixel(run, server):
    images, changed, report = run("BifrostCompose", **PLACED, **BOX, seed=3, samples=2)
    assert images.shape == (2, H, W, 3)
    assert images.dtype == changed.dtype == torch.float32
    report = json.loads(report)
    assert report["report"]["box"] == [0.3, 0.2, 0.7, 0.9]
    assert [image["seed"] for image in report["images"]] == [3, 4]
    drift = report["report"]["drift"]
    assert [int(mask.sum()) for mask in changed] == [each["changed_inside"] for each in drift]
    assert np.array_equal(as_u8(images)[changed == 0], np.repeat(room(H, W)[None], 2, 0)[changed == 0])
    assert not list(server[1].folder.glob("*/*uploads*"))


def test_target_mask_bounds_the_change(run):
    mask = torch.from_numpy(square())[None].float()
    _, changed, report = run("BifrostCompose", **PLACED, target_mask=mask, mode="inpaint")
    assert changed[0][square()].any()
    assert not changed[0][~square()].any()
    assert json.loads(report)["mask"] == "white = edit"


def test_place_goes_into_compose(run):
    sentence = "Place the thing to the left of the crate"
    box, depth, report = run("BifrostPlaceBySentence", **PLACED, sentence=sentence, anchors=CRATE)
    assert [float(value) for value in box.split(",")] == json.loads(report)["places"][0]["box"]
    assert 1 <= len(depth.split(",")) <= 2
    _, changed, report = run("BifrostCompose", **PLACED, box=box, depth=depth)
    assert changed.any()
    assert json.loads(report)["report"]["box"] == [float(value) for value in box.split(",")]


def test_depth_map_travels_with_16_bits(run, server, monkeypatch, nodes):
    seen = []
    png = sys.modules[nodes["BifrostCompose"].__module__].png
    monkeypatch.setattr(
        sys.modules[nodes["BifrostCompose"].__module__],
        "png",
        lambda name, image: seen.append((name, data := png(name, image))) or data,
    )
    run("BifrostCompose", **PLACED, **BOX)
    files = dict(seen)
    assert np.abs(decoded(files["depth_map"]) / 65535 - room_depth(H, W)).max() < 1e-5
    assert np.array_equal(decoded(files["image"]), room(H, W))
    assert np.array_equal(decoded(files["reference_mask"]) > 127, thing()[1])


@pytest.mark.parametrize("prompts", ["a red cube\na blue ball", "a red cube", ""])
def test_regions_are_painted_and_empty_prompts_written(run, prompts):
    masks = torch.from_numpy(np.stack([square(), square(10, 70, 20)])).float()
    image, report = run("BifrostPaintRegions", image=BACKGROUND, masks=masks, prompts=prompts)
    changed = (as_u8(image)[0] != room(H, W)).any(2)
    for mask in masks.numpy() > 0:
        assert changed[mask].mean() > 0.5
    assert not changed[masks.numpy().sum(0) == 0].any()
    texts = [row["prompt"] for row in json.loads(report)["report"]["prompts"]]
    given = prompts.splitlines()
    assert texts[: len(given)] == given
    assert all(texts)


TWO = torch.cat([BACKGROUND, BACKGROUND])
REFUSED = {
    "several images": (
        "BifrostCompose",
        {**PLACED, **BOX, "background": TWO},
        ValueError,
        "image holds 2 images",
    ),
    "more lines": (
        "BifrostPaintRegions",
        {"image": BACKGROUND, "masks": OBJECT_MASK, "prompts": "a\nb"},
        ValueError,
        "2 lines for 1 masks",
    ),
    "no place": ("BifrostCompose", PLACED, RuntimeError, "Bifrost: .*is needed: where to paint"),
    "wrong box": ("BifrostCompose", {**PLACED, "box": "1,1,0,0"}, RuntimeError, "Bifrost: box must"),
    "mask of another size": (
        "BifrostPaintRegions",
        {"image": BACKGROUND, "masks": torch.ones(1, 64, 64), "prompts": "a"},
        RuntimeError,
        "Bifrost: .*64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_in_words(run, name):
    node, given, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        run(node, **given)


def test_account_and_address_are_checked(run, monkeypatch):
    monkeypatch.setenv("BIFROST_AUTH", "anne:wrong")
    with pytest.raises(RuntimeError, match="Bifrost: user and password are needed"):
        run("BifrostCompose", **PLACED, **BOX)
    monkeypatch.setenv("BIFROST_SERVER", "http://127.0.0.1:9")
    with pytest.raises(Exception, match="127.0.0.1:9"):
        run("BifrostCompose", **PLACED, **BOX)


def test_interrupting_cancels_the_job(run, server, comfy, monkeypatch, nodes):
    module = sys.modules[nodes["BifrostCompose"].__module__]
    send = module.send
    monkeypatch.setattr(module, "send", lambda end, **fields: send(end, **fields, steps=1000))
    comfy.interrupt = lambda: bool(comfy.progress)
    with pytest.raises(Interrupted):
        run("BifrostCompose", **PLACED, **BOX, samples=10)
    newest = max(server[1].jobs.values(), key=lambda job: job.created)
    newest.finished.result(20)
    assert newest.state == "cancelled"
    assert comfy.progress[0][1] == 1000
