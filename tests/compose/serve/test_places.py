"""Where a sentence puts the object: the same places as the library's, and what such a request must hold."""

import json
from dataclasses import replace

import numpy as np
import pytest

from compose import ComposeSettings, load_models
from compose.placement import locate
from compose.sources import read_sources
from tests.compose.serve.serving import COMPOSITE, depth, post, refusal, running, square, white

CRATE = {"crate": {"box": [0.68, 0.45, 0.88, 0.8], "depth": 0.64}}
IMAGES = {name: COMPOSITE[name] for name in ("image", "reference_image", "reference_mask", "depth_map")}
SENTENCE = {"instruction": "Place the thing to the left of the crate", "anchors": json.dumps(CRATE)}


@pytest.fixture(scope="module")
def client(tmp_path_factory, small_compositor, small_depth_network):
    folder = tmp_path_factory.mktemp("places")
    config = folder / "compose.yaml"
    config.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n")
    with running(folder / "out", compose_config=config) as client:
        yield client


def ask(client, **fields):
    return post(client, {**IMAGES, **fields}, path="/v1/images/places")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["instruction", "prompt"])
@pytest.mark.parametrize("estimates", [False, True])
def test_places_are_those_of_the_library(
    client, tmp_path, small_compositor, small_depth_network, count, name, estimates
):
    paths = {"background": "image", "object": "reference_image", "object_mask": "reference_mask"}
    files = {setting: tmp_path / f"{field}.png" for setting, field in paths.items()}
    for setting, field in paths.items():
        files[setting].write_bytes(IMAGES[field])
    (tmp_path / "depth.png").write_bytes(depth())
    (tmp_path / "anchors.json").write_text(SENTENCE["anchors"])
    settings = ComposeSettings(
        **files,
        instruction=SENTENCE["instruction"],
        anchors=tmp_path / "anchors.json",
        candidates=count,
        model=small_compositor,
        depth_model=small_depth_network,
        device="cpu",
    )
    sources, models = read_sources(settings), load_models(settings)
    known = models.depth.estimate(sources.background.rgb_u8)
    if not estimates:
        settings = replace(settings, background_depth=tmp_path / "depth.png")
        known = read_sources(settings).depth_01
    expected = locate(settings, models, sources, known)
    fields = {"anchors": SENTENCE["anchors"], name: SENTENCE["instruction"], "candidates": str(count)}
    answer = ask(client, **fields, depth_map=None if estimates else depth()).json()
    assert [place["box"] for place in answer["places"]] == [
        list(each.location.box01_xyxy) for each in expected.candidates
    ]
    assert [place["satisfied"] for place in answer["places"]] == [
        expected.satisfied(index) for index in range(len(expected.candidates))
    ]
    assert answer["data"] == []
    assert answer["instruction"] == SENTENCE["instruction"]
    assert (
        answer["locator"]["anchors"].startswith("memory:") or answer["locator"]["anchors"] == "anchors.json"
    )


def test_composite_at_a_place_is_that_of_the_sentence(client):
    place = ask(client, **SENTENCE).json()["places"][0]
    by_sentence = post(client, {**IMAGES, **SENTENCE}).json()
    box = ",".join(map(str, place["box"]))
    depth = f"{place['far']},{place['near']}" if place["far"] is not None else str(place["depth"])
    by_box = post(client, {**IMAGES, "box": box, "depth": depth}).json()
    assert np.array_equal(by_box["report"]["box"], by_sentence["report"]["box"])
    assert by_box["data"][0]["b64_json"][:40] == by_sentence["data"][0]["b64_json"][:40]
    assert by_box["report"]["drift"] == by_sentence["report"]["drift"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "instruction is missing: the sentence that says where"),
        ({**SENTENCE, "reference_image": None}, "reference_image is missing: the object to place"),
        ({**SENTENCE, "image": None}, "image is missing: the image to look at"),
        ({**SENTENCE, "box": "0,0,1,1"}, "unknown field 'box'"),
        ({**SENTENCE, "n": "2"}, "unknown field 'n'"),
        ({**SENTENCE, "mask": white(square())}, "unknown field 'mask'"),
        (
            {**SENTENCE, "image": "data:image/png;base64,AAAA"},
            "image: text is a path or an address; contents",
        ),
        ({**SENTENCE, "reference_image": "A" * 5000}, "reference_image: text is a path or an address"),
        ({**SENTENCE, "candidates": "0"}, "candidates must be in [1, 64], got 0"),
        ({**SENTENCE, "instruction": "Hello there"}, "no known relation"),
    ],
)
def test_other_requests_are_refused(client, fields, message):
    answer = ask(client, **fields)
    assert answer.status_code == 400
    assert message in refusal(answer)
    assert "AAAA" not in refusal(answer)


def test_place_is_a_job_without_images(client):
    sent = post(client, {**IMAGES, **SENTENCE}, path="/v1/images/places", headers={"Prefer": "respond-async"})
    client.queue.jobs[sent.json()["id"]].finished.result(20)
    job = client.get(sent.headers["location"]).json()
    assert (job["kind"], job["state"]) == ("place", "done")
    assert job["result"]["places"]
    assert client.get(f"/v1/jobs/{job['id']}/0.png").status_code == 404
