"""What the HTTP API refuses, in the words of the request, and without a path of the server."""

import base64
import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.files import ROOT
from tests.compose.serve.serving import (
    COMPOSITE,
    PAINTING,
    H,
    W,
    png,
    post,
    refusal,
    running,
    square,
    white,
)
from tests.images import room

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
