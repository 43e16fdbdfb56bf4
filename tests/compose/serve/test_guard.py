"""Every route asks for the account; other pages, foreign host names and large bodies are refused."""

import base64

import pytest
from starlette.testclient import WebSocketDenialResponse

from compose.serve.settings import COMPOSE_FIELDS, PAINT_FIELDS, ServeSettings
from compose.settings import CompositeSettings
from inpainting.dream import DreamSettings
from ldm.settings.schema import flat_settings
from tests.compose.serve.serving import running

AUTH = "anne:se:cr\u00e9t"
ROUTES = [
    "/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/healthz",
    "/v1/models",
    "/v1/jobs/a",
    "/v1/jobs/a/events",
]
ROUTES += ["/gradio_api/info", "/gradio_api/mcp/", "/v1/jobs/a/0.png", "/nothing"]


def basic(text, kind="Basic"):
    return {"Authorization": f"{kind} {base64.b64encode(text.encode()).decode()}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with running(tmp_path_factory.mktemp("guard") / "out", page=True, auth=AUTH) as client:
        yield client


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    with running(tmp_path_factory.mktemp("free") / "out", page=True) as client:
        yield client


WRONG = {
    "none": {},
    "other password": basic("anne:secret"),
    "other user": basic("bert:se:cr\u00e9t"),
    "no password": basic("anne"),
    "no base64": {"Authorization": "Basic anne:secret"},
    "digest": {"Authorization": f"Digest {AUTH}".encode()},
    "bearer in base64": basic(AUTH, "Bearer"),
    "empty": {"Authorization": ""},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_wrong_account_is_refused(guarded, headers):
    answer = guarded.get("/healthz", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert answer.json()["error"]["message"] == "user and password are needed"


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_the_account(guarded, route):
    assert guarded.get(route).status_code == 401
    assert guarded.get(route, headers=basic(AUTH)).status_code != 401


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "OPTIONS", "HEAD", "PATCH"])
def test_every_method_asks_for_the_account(guarded, method):
    assert guarded.request(method, "/v1/images/edits").status_code == 401


def test_account_is_taken_as_basic_and_as_bearer_token(guarded):
    assert guarded.get("/healthz", headers=basic(AUTH)).status_code == 200
    assert guarded.get("/healthz", headers=basic(AUTH, "basic")).status_code == 200
    bearer = {"Authorization": f"Bearer {AUTH}".encode()}
    assert guarded.get("/healthz", headers=bearer).status_code == 200


def test_socket_asks_for_the_account(guarded):
    host = {"Host": "127.0.0.1"}
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        guarded.websocket_connect("/socket", headers=host),
    ):
        pass
    assert refused.value.status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "", "10.0.0.7"]
)
def test_foreign_name_of_a_local_address_is_refused(free, host):
    assert free.get("/healthz", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "[::1]:7860", "LocalHost"])
def test_local_names_are_taken(free, host):
    assert free.get("/healthz", headers={"Host": host}).status_code == 200


def test_server_for_others_takes_any_name(tmp_path):
    with running(tmp_path / "out", host="0.0.0.0", auth=AUTH) as client:
        assert client.get("/healthz", headers={**basic(AUTH), "Host": "images.example"}).status_code == 200


OTHER_PAGES = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", OTHER_PAGES, ids=str)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_request_of_another_page_is_refused(free, headers, method):
    answer = free.request(method, "/v1/images/edits", headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        403,
        "requests of other web pages are refused",
    )


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://127.0.0.1:7860"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
    ids=str,
)
def test_own_page_and_programs_may_send(free, headers):
    assert free.post("/v1/images/edits", headers=headers).status_code == 415


@pytest.mark.parametrize("route", ["/healthz", "/openapi.json", "/", "/v1/models"])
def test_no_other_page_may_read_an_answer(free, route):
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        answer = free.request(method, route, headers=headers)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"auth": "anne"}, "--auth must be USER:PASSWORD"),
        ({"auth": ":secret"}, "--auth must be USER:PASSWORD"),
        ({"auth": "anne:"}, "--auth must be USER:PASSWORD"),
        ({"root_path": "bifrost"}, "--root-path must begin with / and not end with it, got 'bifrost'"),
        ({"root_path": "/"}, "--root-path must begin with /"),
        ({"share": "on"}, "unknown share 'on'; allowed: off"),
        ({"devices": ()}, "--devices must name different devices, got none"),
        ({"devices": ("cpu", "cpu")}, "--devices must name different devices, got cpu,cpu"),
        ({"port": 70000}, "port must be in \\[0, 65535\\], got 70000"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        ServeSettings(**options)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("images.example", False),
    ],
)
def test_only_loopback_is_local(host, local):
    assert ServeSettings(host=host).is_local is local


@pytest.mark.parametrize(
    ("fields", "schema"), [(COMPOSE_FIELDS, CompositeSettings), (PAINT_FIELDS, DreamSettings)]
)
def test_no_request_names_a_path_a_network_or_a_device(fields, schema):
    kinds = {name: str(hint) for name, (_, hint) in flat_settings(schema).items()}
    assert len(fields) > 10
    assert [name for name in fields if "Path" in kinds[name]] == []
    assert not {"device", "dtype", "locator", "model", "lora_scale", "precision", "out"} & set(fields)
