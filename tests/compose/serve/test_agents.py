"""Tools for agents, called by the protocol's own client; and what is said where its library is missing."""

import json

import anyio
import httpx
import jsonschema
import pytest

from compose.serve import agents
from ldm.result import write_result
from tests.compose.serve.serving import (
    COMPOSITE,
    H,
    W,
    decoded,
    listening,
    png,
    square,
    transparent,
    white,
)
from tests.compose.serve.tool_calls import ACCOUNT, call, fetched, session
from tests.images import room

NEEDS = "mcp is missing: pip install mcp==1.30.0 (requirements-extras.txt)"
TOOLS = ["place", "compose", "paint", "dream", "replay", "describe_models"]
CRATE = {"crate": {"box": [0.68, 0.45, 0.88, 0.8], "depth": 0.64}}
PLACED = {"image": "room.png", "reference_image": "thing.png", "reference_mask": "thing_mask.png"}
PLACED |= {"depth_map": "depth.png"}
BOX = {**PLACED, "box": [0.3, 0.2, 0.7, 0.9], "depth": [0.6]}
FILES = {"room.png": "image", "thing.png": "reference_image", "thing_mask.png": "reference_mask"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the server allows; a secret lies beside it."""
    made = tmp_path_factory.mktemp("agents") / "allowed"
    (made / "sub").mkdir(parents=True)
    for name, field in {**FILES, "depth.png": "depth_map"}.items():
        (made / name).write_bytes(COMPOSITE[field])
    (made / "mask.png").write_bytes(white(square()))
    (made / "hole.png").write_bytes(transparent(square(10, 70, 20)))
    (made.parent / "secret.png").write_bytes(png(room(H, W)))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory, folder, small_compositor, small_depth_network):
    pytest.importorskip("mcp", reason=NEEDS)
    made = tmp_path_factory.mktemp("server")
    config = made / "compose.yaml"
    config.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n")
    with listening(made / "out", compose_config=config, allow=(folder,), auth=ACCOUNT) as started:
        yield started


def test_tools_have_schemas_of_the_settings(server):
    async def ask():
        async with session(server[0]) as one:
            return await one.list_tools()

    tools = {tool.name: tool for tool in anyio.run(ask).tools}
    assert list(tools) == TOOLS
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        assert set(tool.inputSchema["required"]) <= set(tool.inputSchema["properties"])
        assert "path" in tool.description
        assert "base64" not in json.dumps(tool.inputSchema)
    fields = tools["compose"].inputSchema["properties"]
    assert (fields["steps"]["minimum"], fields["steps"]["maximum"]) == (1, 1000)
    assert fields["box"]["items"]["type"] == "number"
    assert not {"model", "device", "locator", "size"} & fields.keys()


def test_composite_has_an_address_and_a_new_file(server, folder):
    before = sorted(folder.iterdir())
    made = call(server, "compose", **BOX, seed=5, n=2, out="sub/a.png")
    assert [image["path"] for image in made["data"]] == ["sub/a_0.png", "sub/a_1.png"]
    for image in made["data"]:
        assert fetched(image) == (folder / image["path"]).read_bytes()
        assert image["drift"]["changed_outside"] == 0
    assert [image["seed"] for image in made["data"]] == [5, 6]
    assert made["report"]["box"] == BOX["box"]
    assert sorted(folder.iterdir()) == before
    again = call(server, "compose", **BOX, out="sub/a_1.png")
    assert again == "out: sub/a_1.png is there already; nothing is replaced"
    assert str(folder) not in json.dumps(made)


def test_file_that_appears_meanwhile_is_kept_and_a_full_disk_leaves_nothing(server, folder, monkeypatch):
    def appears(files, overwrite=False):
        (folder / "sub" / "late.png").write_bytes(b"mine")
        write_result(files, overwrite)

    monkeypatch.setattr(agents, "write_result", appears)
    call(server, "compose", **BOX, out="sub/late.png")
    assert (folder / "sub" / "late.old1.png").read_bytes() == b"mine"

    def full(files, overwrite=False):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(agents, "write_result", full)
    said = call(server, "compose", **BOX, out="sub/full.png")
    assert said.startswith("out: sub/full.png cannot be written; the image is at http://127.0.0.1:")
    assert not (folder / "sub" / "full.png").exists()


def test_replay_is_identical_and_refuses_other_inputs(server, folder):
    first = call(server, "compose", **BOX, seed=3, out="sub/first.png")
    (folder / "other.png").write_bytes(png(255 - room(H, W)))
    same = call(server, "replay", result="sub/first.png", **PLACED)
    assert same["identical"] is True
    assert fetched(same["data"][0]) == fetched(first["data"][0])
    assert "result was made from image, reference_image, reference_mask, depth_map; given: image" in call(
        server, "replay", result="sub/first.png", image="room.png"
    )
    changed = call(server, "replay", result="sub/first.png", **{**PLACED, "image": "other.png"})
    assert "(image) has changed since the image was made" in changed
    assert "recipe" in call(server, "replay", result="room.png", **PLACED)


def test_second_sample_with_a_mask_and_a_sentence_is_replayed(server):
    sentence = {"instruction": "Place the thing to the left of the crate", "anchors": CRATE, "n": 2}
    for name, given in {
        "sentence": {**PLACED, **sentence},
        "mask": {**PLACED, "mask": "hole.png", "mode": "inpaint", "n": 2},
    }.items():
        made = call(server, "compose", **given, out=f"sub/{name}.png")
        inputs = {key: given[key] for key in given.keys() & {*PLACED, "mask"}}
        again = call(server, "replay", result=f"sub/{name}_1.png", **inputs)
        assert isinstance(again, dict), again
        assert again["identical"] is True, again
        assert fetched(again["data"][0]) == fetched(made["data"][1])


def test_places_are_those_of_the_composite(server):
    sentence = {"instruction": "Place the thing to the left of the crate", "anchors": CRATE}
    places = call(server, "place", **PLACED, **sentence, candidates=2)["places"]
    made = call(server, "compose", **PLACED, **sentence)
    assert len(places) == 2
    assert places[0]["box"] == made["report"]["box"]


@pytest.mark.parametrize("tool", ["paint", "dream"])
def test_regions_are_painted_by_box_and_mask(server, tool):
    prompts = {"paint": ["a red cube", "a blue ball"], "dream": ["a red cube", ""]}[tool]
    where = [{"mask": "hole.png"}, {"box": [0.1, 0.6, 0.4, 0.9]}]
    regions = [{"prompt": text, **place} for text, place in zip(prompts, where, strict=True)]
    made = call(server, tool, image="room.png", regions=regions, steps=1)
    changed = (decoded(fetched(made["data"][0])) != room(H, W)).any(2)
    allowed = square(10, 70, 20)
    allowed[round(0.6 * H) : round(0.9 * H), round(0.1 * W) : round(0.4 * W)] = True
    assert changed[allowed].mean() > 0.5
    assert not changed[~allowed].any()
    assert made["mask"] == "alpha 0 = edit"
    texts = [row["prompt"] for row in made["report"]["prompts"]]
    assert texts[0] == "a red cube"
    assert texts[1] != ""


def test_models_are_described(server):
    said = call(server, "describe_models")
    assert [model["kind"] for model in said["data"]] == ["compose", "paint"]
    assert len(said["networks"]) == 5
    assert said["takes"] == {"paths": True, "addresses": False, "n": 10, "max_mb": 64, "max_megapixels": 40}


ROOM = {"image": "room.png"}
REGION = {"prompt": "a", "box": [0, 0, 1, 1]}
REFUSED = {
    "unknown tool": ("compoze", {}, "did you mean 'compose'?"),
    "unknown argument": ("compose", {**BOX, "boxx": 1}, "'boxx' was unexpected"),
    "missing": ("compose", {"image": "room.png"}, "'reference_image' is a required property"),
    "contents": (
        "compose",
        {**BOX, "image": "data:image/png;base64," + "A" * 9000},
        "image: text is a",
    ),
    "long": ("paint", {"image": "A" * 5000, "regions": [REGION]}, "image: text is a path"),
    "mask contents": ("paint", {**ROOM, "regions": [{"prompt": "a", "mask": "data:,A"}]}, "mask: text is"),
    "outside": ("compose", {**BOX, "image": "../secret.png"}, "image: ../secret.png is no file below"),
    "absolute": (
        "compose",
        {**BOX, "image": "/etc/hostname"},
        "image: hostname is no file below",
    ),
    "address": (
        "compose",
        {**BOX, "image": "http://127.0.0.1/a.png"},
        "image: addresses are not",
    ),
    "out of it": ("compose", {**BOX, "out": "../a.png"}, "out: ../a.png is no PNG in a folder that may"),
    "no folder": ("compose", {**BOX, "out": "no/a.png"}, "out: no/a.png is no PNG in a folder"),
    "no png": ("compose", {**BOX, "out": "a.jpg"}, "out: a.jpg is no PNG"),
    "input": ("compose", {**BOX, "out": "room.png"}, "out: room.png is there already"),
    "range": ("compose", {**BOX, "steps": 0}, "0 is less than the minimum of 1"),
    "place": ("compose", {**BOX, "box": [0.5, 0.5, 0.2, 0.2]}, "box must"),
    "number": ("compose", {**BOX, "n": 11}, "11 is greater than the maximum of 10"),
    "no prompt": ("paint", {**ROOM, "regions": [REGION, {"box": [0, 0, 1, 1]}]}, "region 2 has no"),
    "no place": ("paint", {**ROOM, "regions": [{"prompt": "a"}]}, "1 regions, 0 of them with a box"),
    "two places": ("paint", {**ROOM, "regions": [{**REGION, "mask": "mask.png"}]}, "do not fit 1"),
    "replay of nothing": ("replay", {"result": "none.png"}, "result: none.png is no file below"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_calls_are_refused_in_words(server, folder, name):
    tool, arguments, message = REFUSED[name]
    said = call(server, tool, **arguments)
    assert isinstance(said, str)
    assert message in said
    assert str(folder.parent) not in said
    assert "A" * 100 not in said


def test_text_of_a_prompt_is_not_looked_up(server, monkeypatch):
    monkeypatch.setenv("SECRET_OF_SERVER", "hunter2")
    region = {"prompt": "${oc.env:SECRET_OF_SERVER}", "box": [0.1, 0.1, 0.5, 0.5]}
    made = call(server, "paint", image="room.png", regions=[region], steps=1)
    assert "hunter2" not in json.dumps(made)
    assert made["report"]["prompts"][0]["prompt"] == region["prompt"]


def test_account_is_asked_for(server):
    def status(**headers):
        return httpx.post(f"{server[0]}/mcp", headers=headers, json={}).status_code

    assert status() == 401
    assert status(Authorization="Bearer anne:wrong") == 401
    assert status(Authorization=f"Bearer {ACCOUNT}", Origin="http://evil.example") == 403
    assert status(Authorization=f"Bearer {ACCOUNT}") not in (401, 403)


def test_progress_is_told_and_a_cancelled_call_ends_the_job(server):
    steps = []

    async def told(progress, total, message):
        steps.append((progress, total))

    async def ask():
        from mcp import McpError, types

        async with session(server[0]) as one, anyio.create_task_group() as group:

            async def compose():
                with pytest.raises(McpError, match="cancelled"):
                    await one.call_tool("compose", {**BOX, "steps": 1000, "n": 10}, progress_callback=told)

            group.start_soon(compose)
            while not steps:
                await anyio.sleep(0.05)
            gone = types.CancelledNotificationParams(requestId=one._request_id - 1)
            note = types.ClientNotification(types.CancelledNotification(params=gone))
            await one.send_notification(note)
            with anyio.fail_after(30):
                while any(job.state == "running" for job in server[1].jobs.values()):
                    await anyio.sleep(0.05)

    anyio.run(ask)
    assert steps[0][1] == 1000
    assert max(server[1].jobs.values(), key=lambda job: job.created).state == "cancelled"


def test_queue_and_rate_are_those_of_the_http_api(tmp_path, folder, small_compositor):
    pytest.importorskip("mcp", reason=NEEDS)
    config = tmp_path / "compose.yaml"
    config.write_text(f"model: {small_compositor}\n")
    options = {"compose_config": config, "allow": (folder,), "auth": ACCOUNT, "rate_limit": 1}
    with listening(tmp_path / "out", **options) as server:
        assert "data" in call(server, "compose", **BOX)
        assert "1 requests a minute are allowed to one client; try again in" in call(server, "compose", **BOX)
