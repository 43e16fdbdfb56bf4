"""The HTTP API: what it paints, by which mask, and what its answers say."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compose import ComposeSettings, compose, load_models
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.compose.serve.serving import (
    COMPOSITE,
    PAINTING,
    H,
    W,
    decoded,
    images,
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
    for name in ("1.png", "0_layers.ora", "job.json", "..%2f0.png", "%2e%2e"):
        assert client.get(entry["url"].replace("0.png", name)).status_code in (404, 405)


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
