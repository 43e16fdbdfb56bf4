"""The HTTP API: what it paints, what it refuses and in which words, jobs, limits, no path told."""

import base64
import errno
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compose import ComposeSettings, compose, load_models
from ldm.files import ROOT
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.compose.serve.serving import (
    COMPOSITE,
    PAINTING,
    H,
    W,
    decoded,
    png,
    post,
    refusal,
    running,
    square,
    transparent,
    white,
)
from tests.images import room

FILES = {  # settings of the library -> fields of a request
    "background": "image",
    "object": "reference_image",
    "object_mask": "reference_mask",
    "background_depth": "depth_map",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_compositor, small_depth_network):
    path = tmp_path_factory.mktemp("config") / "compose.yaml"
    path.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def client(tmp_path_factory, config):
    with running(tmp_path_factory.mktemp("server") / "out", compose_config=config) as client:
        yield client


def images(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


def busy(client):
    """Keep the worker busy until the returned event is set."""
    gate, job = threading.Event(), client.queue.open("test")
    client.queue.submit(job, lambda job, own: gate.wait(20) and {} or {})
    while job.state == "queued":
        time.sleep(0.005)
    return gate


def test_composite_is_that_of_the_library_and_its_bytes_repeat(client, small_compositor, tmp_path):
    answer = post(client, {**COMPOSITE, "seed": "5", "n": "2"})
    first, second = images(answer)
    assert [entry["seed"] for entry in answer.json()["data"]] == [5, 6]
    paths = {name: tmp_path / f"{name}.png" for name in FILES}
    for name, field in FILES.items():
        paths[name].write_bytes(COMPOSITE[field])
    place = {"box": (0.3, 0.2, 0.7, 0.9), "depth": (0.6,), "model": small_compositor}
    settings = ComposeSettings(**paths, **place, seed=5, num_samples=2, device="cpu")
    expected = compose(settings, load_models(settings), progress=False)
    assert np.array_equal([decoded(first), decoded(second)], expected.images_u8)
    assert images(post(client, {**COMPOSITE, "seed": "5", "n": "2"})) == [first, second]
    report = answer.json()["report"]
    assert report["visible_fraction"] == expected.report["visible_fraction"]
    assert report["box"] == [0.3, 0.2, 0.7, 0.9]
    assert answer.json()["recipe"]["settings"]["steps"] is None
    assert answer.json()["data"][0]["drift"]["changed_outside"] == 0


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (transparent(square()), "alpha 0 = edit"),
        (transparent(square(), np.zeros((H, W, 3), np.uint8)), "alpha 0 = edit"),
        (white(square()), "white = edit"),
        (png(np.repeat(square()[..., None], 3, 2).astype(np.uint8) * 255), "white = edit"),
        (
            png(np.repeat(square()[..., None], 3, 2).astype(np.uint8) * 255, np.full((H, W), 255, np.uint8)),
            "white = edit",
        ),
    ],
    ids=["alpha", "alpha of black", "gray", "rgb", "opaque rgba"],
)
def test_mask_is_read_by_alpha_or_white_and_the_answer_says_which(client, mask, said):
    answer = post(client, {**PAINTING, "mask": mask})
    changed = (decoded(images(answer)[0]) != room(H, W)).any(2)
    assert answer.json()["mask"] == said
    assert changed[square()].mean() > 0.5
    assert not changed[~square()].any()


def test_transparent_part_of_the_image_is_its_mask(client):
    answer = post(client, {**PAINTING, "image": transparent(square()), "mask": None})
    result = decoded(images(answer)[0])
    assert answer.json()["mask"] == "alpha 0 = edit"
    assert np.array_equal(result[~square()][:, :3], room(H, W)[~square()])
    assert (result[..., 3] == 255).all()


@pytest.mark.parametrize("mode", ["place", "replace", "id-transfer", "inpaint", "draw"])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_nothing_outside_the_mask_changes_in_any_mode(client, mode, with_alpha):
    alpha = np.full((H, W), 200, np.uint8) if with_alpha else None
    fields = {**COMPOSITE, "image": png(room(H, W), alpha), "box": None, "depth": None, "mode": mode}
    answer = post(client, {**fields, "mask": transparent(square())})
    result = decoded(images(answer)[0])
    changed = (result[..., :3] != room(H, W)).any(2)
    assert changed[square()].any()
    assert not changed[~square()].any()
    assert alpha is None or (result[..., 3][~square()] == 200).all()
    drift = answer.json()["data"][0]["drift"]
    assert (drift["changed_outside"], drift["changed_inside"]) == (0, changed.sum())


def test_regions_take_boxes_and_masks_and_their_own_prompts(client):
    regions = [
        {"prompt": "a red cube", "box": [0, 0.5, 0.25, 1]},
        {"prompt": "a blue cone", "negative": "green"},
    ]
    answer = post(client, {**PAINTING, "prompt": "", "regions": json.dumps(regions)})
    left = np.zeros((H, W), bool)
    left[H // 2 :, : W // 4] = True
    changed = (decoded(images(answer)[0]) != room(H, W)).any(2)
    assert changed[left].any()
    assert changed[square()].any()
    assert not changed[~(left | square())].any()
    painted = answer.json()["recipe"]["regions"]
    assert [(region["prompt"], region["negative"]) for region in painted] == [
        ("a red cube", ""),
        ("a blue cone", "green"),
    ]


def test_image_and_masks_in_the_spelling_of_lists(client):
    fields = {"image[]": PAINTING["image"], "mask[]": PAINTING["mask"], "prompt": "a red cube", "steps": "1"}
    assert images(post(client, fields)) == images(post(client, PAINTING))


def test_lists_are_repeated_in_their_spelling_or_have_commas(client):
    box = ["0.3", "0.2", "0.7", "0.9"]
    expected = images(post(client, COMPOSITE))
    for name, value in (("box[]", box), ("box", box), ("box", "[0.3, 0.2, 0.7, 0.9]")):
        assert images(post(client, {**COMPOSITE, "box": None, name: value})) == expected


def test_url_leads_to_the_same_bytes(client):
    answer = post(client, {**COMPOSITE, "response_format": "url"})
    (entry,) = answer.json()["data"]
    assert entry["url"].startswith("http://127.0.0.1:7860/v1/jobs/")
    found = client.get(entry["url"])
    assert found.headers["content-type"] == "image/png"
    assert [found.content] == images(post(client, COMPOSITE))
    for name in ("1.png", "0.json", "job.json", "..%2f0.png", "%2e%2e"):
        assert client.get(entry["url"].replace("0.png", name)).status_code in (404, 405)


UNKNOWN = [
    ("boxx", "0,0,1,1", "unknown field 'boxx'; did you mean 'box'? allowed: "),
    ("Prompt", "a", "unknown field 'Prompt'; did you mean 'prompt'? allowed: "),
    ("quality", "high", "unknown field 'quality'; allowed: "),
    ("regions", "[]", "regions does not go with reference_image"),
    ("lora", "a.safetensors", "unknown field 'lora'; "),
    ("device", "cpu", "unknown field 'device'; "),
    ("background", "transparent", "unknown field 'background'; "),
    ("image[0]", "a", "unknown field 'image[0]'; "),
]


@pytest.mark.parametrize(("name", "value", "text"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_unknown_field_is_refused_by_name(client, name, value, text):
    answer = post(client, {**COMPOSITE, name: value})
    assert answer.status_code == 400
    assert refusal(answer).startswith(text)


REFUSED = [
    ({"n": "0"}, "n must be 1 to 10, got '0'"),
    ({"n": "11"}, "n must be 1 to 10, got '11'"),
    ({"n": "two"}, "n must be 1 to 10, got 'two'"),
    ({"size": "1024x1024"}, "size must be auto or 128x96, the size of the image, got '1024x1024'"),
    ({"response_format": "jpeg"}, "response_format must be b64_json or url, got 'jpeg'"),
    ({"output_format": "webp"}, "output_format must be png, got 'webp'"),
    ({"model": "dall-e-2"}, "model must be small, got 'dall-e-2'"),
    ({"steps": "0"}, "steps must be in [1, 1000], got 0"),
    ({"steps": "many"}, "steps must be int, got 'many'"),
    ({"seed": ["1", "2"]}, "seed must be one text, got 2"),
    ({"box": "0.9,0.2,0.7,0.9"}, "box must be x1,y1,x2,y2 in fractions of the image"),
    ({"box": "0.1,0.2"}, "box must be float,float,float,float, got 0.1,0.2"),
    (
        {"box": None},
        "instruction SENTENCE, box x1,y1,x2,y2 (fractions of the background) or mask FILE is needed",
    ),
    ({"mode": "melt"}, "unknown mode 'melt'; allowed: place"),
    ({"depth": "2"}, "depth must be d or far,near with 0 <= far <= near <= 1 (1 = nearest), got 2"),
    ({"prompt": "Place the cube on the floor"}, "prompt says where the object goes, and so does box"),
    ({"image": None}, "image is missing: the image to edit"),
    (
        {"image": [COMPOSITE["image"]] * 2},
        "image must be one image, got 2; the object goes into reference_image",
    ),
    ({"image": b"<svg/>"}, "image is not an image; readable are PNG, JPEG"),
    ({"reference_image": b""}, "reference_image is not an image"),
    ({"image": COMPOSITE["image"][:200]}, "image is truncated or damaged: its PNG data cannot be decoded"),
    ({"mask": white(square())[:60]}, "mask is "),
    ({"mask": white(square(10)[:50]), "box": None}, "mask is 128 x 50 pixels, its image is 128 x 96"),
    (
        {"mask": png(room(H, W), np.full((H, W), 9, np.uint8))},
        "mask: no pixel is fully transparent (alpha 0)",
    ),
    ({"within_mask": "true"}, "within_mask needs mask"),
    ({"mask": white(square()), "compat": "bifrost"}, "within_mask does not go with compat"),
    ({"mask": [white(square())] * 2}, "mask must be one image with reference_image"),
    ({"image": "/etc/passwd"}, "image must be a file; paths on the server are not read"),
    ({"image": "http://127.0.0.1/a.png"}, "image: addresses are not fetched here"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED, ids=[str(row[0])[:40] for row in REFUSED])
def test_request_that_cannot_be_honoured_is_refused_in_its_own_words(client, changes, text):
    answer = post(client, {**COMPOSITE, **changes})
    assert answer.status_code == 400
    assert refusal(answer).startswith(text)


REGIONS = [
    ({"mask": None}, "mask is missing: where to paint (or regions, or a transparent part of the image)"),
    ({"mask": [PAINTING["mask"]] * 2}, "1 regions, 0 of them with a box, do not fit 2 masks"),
    (
        {"prompt": "", "regions": '[{"box": [0, 0, 1, 1]}]'},
        "1 regions, 1 of them with a box, do not fit 1 masks",
    ),
    ({"prompt": "", "regions": "[{}, {}]"}, "2 regions, 0 of them with a box, do not fit 1 masks"),
    ({"regions": '[{"prompt": "a"}]'}, "prompt: each of the regions has its own; leave it empty"),
    ({"prompt": "", "regions": "a red cube"}, "regions is no JSON"),
    ({"prompt": "", "regions": "{}"}, "regions must be a JSON list"),
    (
        {"prompt": "", "regions": '[{"text": "a"}]'},
        "region 1: unknown key 'text'; allowed: prompt, negative, box",
    ),
    ({"prompt": "", "regions": '[{"prompt": 1}]'}, "region 1: prompt must be text"),
    ({"prompt": "", "regions": '[{}, {"box": [0, 0, 2, 1]}]'}, "region 2: box must be x1,y1,x2,y2"),
    ({"prompt": "", "regions": '[{"box": 3}]'}, "region 1: box must be four numbers"),
    ({"box": "0,0,1,1"}, "box needs reference_image"),
    ({"instruction": "behind the sofa"}, "instruction needs reference_image"),
    ({"strength": "3"}, "strength must be in [0.01, 1.0], got 3.0"),
    ({"model": "small"}, "model must be small inpainter, got 'small'"),
]


@pytest.mark.parametrize(("changes", "text"), REGIONS, ids=[str(row[0])[:40] for row in REGIONS])
def test_painting_that_cannot_be_honoured_is_refused(client, changes, text):
    answer = post(client, {**PAINTING, **changes})
    assert answer.status_code == 400
    assert refusal(answer).startswith(text)


def test_fields_in_the_address_and_other_bodies_are_refused(client):
    assert (
        refusal(post(client, COMPOSITE, params={"seed": 1}))
        == "fields belong into the form, not into the address"
    )
    answer = client.post("/v1/images/edits", json={"prompt": "a"})
    assert (answer.status_code, refusal(answer)) == (415, "a multipart/form-data form is needed")


def test_full_disk_is_said_without_a_path(client, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "no space left", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = post(client, COMPOSITE)
    expected = (507, "the server could not store the request; its log says why")
    assert (answer.status_code, refusal(answer)) == expected


def test_no_refusal_leaves_a_job_or_a_file(client):
    before = set(client.queue.folder.iterdir())
    for changes in ({"n": "0"}, {"boxx": "1"}, {"image": b"text"}):
        assert post(client, {**COMPOSITE, **changes}).status_code == 400
    left = set(client.queue.folder.iterdir()) - before
    assert [sorted(path.name for path in folder.iterdir()) for folder in left] == [["job.json"]] * len(left)
    assert all(job.state != "queued" for job in client.queue.jobs.values())


def test_job_is_followed_by_polling_and_by_events_and_fetched(client):
    gate = busy(client)
    answer = post(client, COMPOSITE, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    job = client.get(answer.headers["location"]).json()
    assert job["state"] == "queued"
    assert job["kind"] == "compose"
    assert job["position"] == 0
    assert client.get(f"{answer.headers['location']}/preview").status_code == 204
    gate.set()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert told[-1]["state"] == "done"
    assert (told[-1]["step"], told[-1]["total"]) == (told[-1]["total"], told[-1]["total"]) != (0, 0)
    assert told[-1] == client.get(f"/v1/jobs/{job['id']}").json()
    assert told[-1]["expires"] > time.time()
    (entry,) = told[-1]["result"]["data"]
    assert [client.get(entry["url"]).content] == images(post(client, COMPOSITE))
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(entry["url"]).status_code == 404
    assert refusal(client.get(f"/v1/jobs/{job['id']}")) == "no such job, or its results are deleted"


def test_preview_of_a_running_job_is_an_image_of_the_crop(client):
    seen = []
    fields = {**COMPOSITE, "steps": "60", "n": "4"}
    place = post(client, fields, headers={"Prefer": "respond-async"}).headers["location"]
    while client.get(place).json()["state"] in ("queued", "running") and not seen:
        answer = client.get(f"{place}/preview")
        seen += [decoded(answer.content).shape] if answer.status_code == 200 else []
    assert seen
    assert seen[0][2] == 3
    client.delete(place)


def test_running_job_is_cancelled(client):
    fields = {**COMPOSITE, "steps": "1000", "n": "10"}
    place = post(client, fields, headers={"Prefer": "respond-async"}).headers["location"]
    while client.get(place).json()["step"] < 1:
        time.sleep(0.01)
    assert client.delete(place).status_code == 204
    job = client.queue.get(place.rpartition("/")[2])
    assert job.finished.result(20).state == "cancelled"
    assert client.get(place).json()["step"] < 1000
    assert client.get(place).json()["result"] is None


def test_waiting_request_hears_that_its_job_was_cancelled(client):
    gate, answers = busy(client), []
    thread = threading.Thread(target=lambda: answers.append(post(client, COMPOSITE)))
    thread.start()
    while not (
        waiting := [job for job in client.queue.jobs.values() if job.state == "queued" and job.kind != "edit"]
    ):
        time.sleep(0.01)
    client.delete(f"/v1/jobs/{waiting[0].id}")
    thread.join(20)
    gate.set()
    assert (answers[0].status_code, refusal(answers[0])) == (409, "the job was cancelled")


def test_requests_at_once_have_the_bytes_of_the_same_requests_alone(client):
    wanted = [
        {**COMPOSITE, "image": png(room(H + 8 * i, W)), "depth_map": None, "seed": str(i)} for i in range(4)
    ]
    wanted += [{**PAINTING, "seed": str(i)} for i in range(2)]
    alone = [images(post(client, fields)) for fields in wanted]
    assert len({data for (data,) in alone}) == len(wanted)
    with ThreadPoolExecutor(len(wanted)) as pool:
        assert list(pool.map(lambda fields: images(post(client, fields)), wanted)) == alone


def test_image_is_named_by_a_path_below_the_allowed_folder(tmp_path, config):
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "room.png").write_bytes(COMPOSITE["image"])
    with running(tmp_path / "out", compose_config=config, allow=(folder,)) as client:
        by_path = images(post(client, {**COMPOSITE, "image": "room.png"}))
        assert by_path == images(post(client, COMPOSITE))
        answer = post(client, {**COMPOSITE, "image": "../out/.lock"})
        assert refusal(answer) == "image: ../out/.lock is no file below the allowed folder"


def test_addresses_of_results_have_the_path_of_the_proxy(tmp_path, config):
    with running(tmp_path / "out", compose_config=config, root_path="/bifrost") as client:
        url = post(client, {**COMPOSITE, "response_format": "url"}).json()["data"][0]["url"]
        assert url.startswith("http://127.0.0.1:7860/bifrost/v1/jobs/")
        assert client.get(url.replace("/bifrost", "")).headers["content-type"] == "image/png"
        assert client.get(url).headers["content-type"] == "image/png"


def test_full_queue_and_too_many_requests_are_told_when_to_come_back(tmp_path, config):
    with running(tmp_path / "out", compose_config=config, waiting=1, rate_limit=3) as client:
        gate = busy(client)
        ok = post(client, COMPOSITE, headers={"Prefer": "respond-async"})
        full = post(client, COMPOSITE)
        assert (ok.status_code, full.status_code) == (202, 429)
        assert refusal(full) == f"1 jobs are waiting; try again in {full.headers['retry-after']} s"
        gate.set()
        client.queue.get(ok.json()["id"]).finished.result(30)
        many = [post(client, {**COMPOSITE, "n": "0"}).status_code for _ in range(3)]
        assert many == [400, 400, 429]


def test_request_and_image_that_are_too_large_are_refused_with_the_limit(tmp_path, config):
    with running(tmp_path / "out", compose_config=config, max_mb=1, max_megapixels=1) as client:
        answer = post(client, {**COMPOSITE, "image": bytes(1_100_000)})
        assert (answer.status_code, refusal(answer)) == (413, "the request is larger than 1 MB (--max-mb)")
        answer = post(client, {**COMPOSITE, "image": png(np.zeros((1001, 1000), np.uint8))})
        assert refusal(answer) == "image has 1000 x 1001 = 1.0 million pixels; at most 1 million are taken"
        chunks = iter([b"x" * 300_000] * 5)
        kind = {"content-type": "multipart/form-data; boundary=b"}
        assert client.post("/v1/images/edits", content=chunks, headers=kind).status_code == 413


def test_no_answer_and_no_image_tells_a_path_of_the_server(client, config, tmp_path, small_compositor):
    answers = [
        post(client, {**COMPOSITE, "reference_mask": None}),
        post(client, PAINTING),
        *(post(client, {**COMPOSITE, **changes}) for changes, _ in REFUSED),
    ]
    for answer in answers:
        texts = [json.dumps(answer.json())]
        for entry in answer.json().get("data", ()):
            image = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
            texts += image.text.values()
        for text in texts:
            for place in (ROOT, client.queue.folder, config.parent, small_compositor.parent, "/tmp", "job-"):
                assert str(place) not in text, text[:300]


def test_recipe_of_a_result_names_uploads_by_their_contents(client, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(images(post(client, COMPOSITE))[0])
    settings = read_recipe(path)["settings"]
    assert settings["background"].startswith("memory:")
    assert settings["model"] == "compositor"


def test_result_is_replayed_from_the_files_that_were_sent(client, small_compositor, tmp_path):
    fields = {**COMPOSITE, "box": None, "mask": white(square()), "mode": "replace"}
    (tmp_path / "a.png").write_bytes(images(post(client, fields))[0])
    words = [
        "replay",
        str(tmp_path / "a.png"),
        "--model",
        str(small_compositor),
        "--out",
        str(tmp_path / "b.png"),
    ]
    for name, field in {**FILES, "target-mask": "mask"}.items():
        path = tmp_path / f"{field}.bin"
        path.write_bytes(fields[field])
        words += [f"--{name.replace('_', '-')}", str(path)]
    assert run_app(build_app, words) == 0
    assert np.array_equal(
        decoded((tmp_path / "b.png").read_bytes()), decoded((tmp_path / "a.png").read_bytes())
    )


def test_result_outlives_the_server(tmp_path, config):
    with running(tmp_path / "out", compose_config=config) as client:
        url = post(client, {**COMPOSITE, "response_format": "url"}).json()["data"][0]["url"]
        data, job = client.get(url).content, client.get(url.rpartition("/")[0]).json()
    with running(tmp_path / "out", compose_config=config) as client:
        assert client.get(url).content == data
        assert client.get(url.rpartition("/")[0]).json() == job


def test_models_and_health(client):
    models = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["kind"]) for model in models] == [
        ("small", "compose"),
        ("small inpainter", "paint"),
    ]
    assert client.get("/healthz").json()["status"] == "ok"
    assert post(client, {**COMPOSITE, "model": "small"}).status_code == 200


def test_openapi_describes_the_fields_from_the_settings(client):
    path = client.get("/openapi.json").json()["paths"]["/v1/images/edits"]["post"]
    fields = path["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert fields["image"]["format"] == "binary"
    assert fields["steps"]["minimum"] == 1
    assert (
        fields["mode"]["enum"] == ["place", "replace", "inpaint", "id-transfer", "draw"]
        or "place" in fields["mode"]["enum"]
    )
    assert (fields["box"]["minItems"], fields["box"]["maxItems"]) == (4, 4)
    assert fields["guidance"]["maximum"] == 30
    assert "0 <= " not in fields["seed"]["description"]
    assert not {"device", "model_folder", "out", "background", "masks", "lora"} & set(fields)
