"""No answer of the server names one of its folders or another host; files of visitors are theirs alone."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import re
import tempfile
import time
import zipfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from compose.serve import page
from compose.serve.desk import Visit
from compose.serve.page import Site
from compose.serve.settings import ServeSettings
from ldm.temporary import FOLDER
from tests.compose.serve.browsing import TENT, listening, served
from tests.compose.serve.scripted import Scripted, proxy
from tests.compose.serve.serving import COMPOSITE, decoded, post, running
from tests.compose.serve.tool_calls import call
from tests.conftest import ROOT

OWN = ("http://127.0.0.1", "https://127.0.0.1", "http://www.w3.org", "http://localhost")
HOSTS = re.compile(r"(?:https?:|[\"'(])//[a-z0-9-]+(?:\.[a-z0-9-]+)+")


@pytest.fixture(scope="module", params=["", "/bifrost"], ids=["plain", "behind a proxy"])
def address(request, tmp_path_factory):
    """Of the page, and the folder that holds its files."""
    folder = tmp_path_factory.mktemp("serve") / "out"
    with served(folder, root_path=request.param) as address:
        if not request.param:
            yield address, folder
        else:
            with listening(proxy(address, request.param)) as front:
                yield f"{front.rstrip('/')}{request.param}/", folder


def paths_in(texts: list[str], folder: Path) -> list[str]:
    """What names a folder of this machine."""
    secrets = {
        str(folder),
        folder.name,
        str(ROOT),
        str(Path.home()),
        tempfile.gettempdir(),
        str(Path(os.__file__).parent),
    }
    secrets |= {folder.parent.name, "site-packages"}
    whole = "\n".join(texts)
    return [secret for secret in secrets - {"out", "/"} if secret in whole]


@cache
def file(name: str) -> tuple[str, bytes]:
    """An image of the example, smaller, with what its file says of it."""
    data, text = io.BytesIO(), PngInfo()
    with Image.open(TENT / name) as image:
        for key, value in image.text.items():
            text.add_text(key, value)
        image.reduce(4).save(data, "PNG", pnginfo=text)
    return name, data.getvalue()


def prepared(address: str) -> Scripted:
    visit = Scripted(address)
    assert visit.give("background-canvas", "background", file("room.png")) == ""
    assert visit.give("object-canvas", "object", file("object.png")) == ""
    visit.draw("background", box=[0.2, 0.2, 0.5, 0.6], points=[[0.2, 0.2], [0.5, 0.6]], radius=0.02)
    return visit


def test_a_visit_sees_no_folder_of_the_server(address):
    address, folder = address
    visit = prepared(address)
    assert "% visible" in visit.value("visible")
    assert visit.fire("compose", "click") == ""
    shown = visit.value("status")["text"]
    links = re.findall(r"(?:href|src)=['\"]([^'\"]+)", shown)
    assert [link.rpartition("/")[2] for link in links][-4:] == [
        "0.png",
        "0.json",
        "0_layers.ora",
        "0_sheet.png",
    ]
    host = httpx.URL(address)
    for link in links:
        found = visit.client.get(host.join(link))
        assert found.status_code == 200, link
        visit.answers.append(str(found.headers) + found.content.decode("latin-1"))
        if link.endswith("0.png"):
            made = found.content
        if link.endswith(".ora"):
            archive = zipfile.ZipFile(io.BytesIO(found.content))
            visit.answers += [archive.read(name).decode("latin-1") for name in archive.namelist()]
    before, after = decoded(file("room.png")[1]), decoded(made)
    assert 0 < (before != after).any(2).mean() < 0.3
    # a result that is dropped, a file of jobs, regions, what is wrong, and what runs here
    assert visit.give("background-canvas", "replay", ("result.png", made)) == ""
    assert visit.value("note") == "All settings of the image are back."
    other = Scripted(address)
    assert other.give("background-canvas", "replay", ("result.png", made)) == ""
    assert other.value("note").endswith(".png) must be given again: drop the same file.")
    job = {"background": "room.png", "object": "object.png", "box": [0.1, 0.1, 0.5, 0.6], "name": "a"}
    jobs = ("jobs.jsonl", json.dumps(job).encode())
    assert visit.give("jobs-canvas", "jobs", jobs, file("room.png"), file("object.png")) == ""
    assert visit.fire("all", "click") == ""
    assert "0 pixels changed outside" in visit.value("states")["text"]
    assert visit.give("painting-canvas", "painting", file("room.png")) == ""
    visit.draw("painting", box=None, points=[[0.4, 0.4], [0.5, 0.5]], radius=0.05)
    assert visit.fire("paint", "click") == ""
    wrong = "text.png", b"no image"
    assert "text.png is not an image" in visit.give("background-canvas", "background", wrong)
    assert "was not written here" in visit.give("background-canvas", "replay", file("room.png"))
    assert visit.give("jobs-canvas", "jobs", file("room.png")) == ""
    assert "one .jsonl file is needed" in visit.fire("all", "click")
    [tab] = [part["id"] for part in visit.config["components"] if part["props"].get("label") == "About"]
    [about] = [one for one in visit.config["dependencies"] if [tab, "select"] in one["targets"]]
    visit.run(about, tab, {})
    assert any("### Machine" in answer for answer in visit.answers)
    for path in ("docs", "openapi.json", "v1/models", "healthz", "nothing", "gradio_api/info", "v1/jobs/a"):
        visit.get(path)
    for path in (folder / "page", "/etc/passwd", TENT / "room.png"):
        for way in ("file=", "file/", "proxy="):
            assert visit.client.get(f"gradio_api/{way}{path}").status_code == 404
    sent = visit.client.post("gradio_api/upload", files={"files": file("room.png")})
    assert (sent.status_code, sent.json()["error"]["message"]) == (404, "Not Found")
    assert paths_in(visit.answers, folder) == []
    assert {path.name for path in folder.iterdir()} >= {"page"}


def test_nothing_is_asked_of_another_host(address):
    """The links of Gradio's own texts remain (settings of the page); styles, scripts and fonts are ours."""
    visit = Scripted(address[0])
    assert (
        re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//(?!127)[^\"']*", visit.page
        )
        == []
    )
    for path in ("docs", "openapi.json", "theme.css", "v1/models"):
        assert [link for link in HOSTS.findall(visit.get(path)) if not link.startswith(OWN)] == []
    assert "/v1/images/edits" in visit.get("docs")
    assert visit.client.get("redoc").status_code == 404


def test_the_api_and_the_tools_work_at_their_address(address):
    where = address[0]
    with httpx.Client(base_url=where, timeout=60) as client:
        answer = post(client, {**COMPOSITE, "steps": "1", "response_format": "url"}, "v1/images/edits")
        [entry] = answer.json()["data"]
        assert entry["url"].startswith(f"{where}v1/jobs/")
        assert decoded(client.get(entry["url"]).content).shape == decoded(COMPOSITE["image"]).shape
        early = {"Prefer": "respond-async"}
        job = post(client, {**COMPOSITE, "steps": "1"}, "v1/images/edits", headers=early)
        assert job.headers["location"].startswith(f"{where}v1/jobs/")
        assert client.get(job.headers["location"]).json()["state"] in ("queued", "running", "done")
        tools = client.post("mcp", json={})
        assert paths_in([answer.text, job.text, tools.text], address[1]) == []
    if importlib.util.find_spec("mcp") is None:
        assert tools.status_code == 501
    else:
        assert call([where.rstrip("/")], "describe_models")["object"] == "list"


def test_a_file_is_taken_once_and_only_by_its_name(address):
    address, folder = address
    mine, other = Scripted(address), Scripted(address)
    [name] = mine.send(file("room.png"))
    assert re.fullmatch("[0-9a-f]{32}", name)
    for guess in ("0" * 32, "../" + name, "..", "", "page", f"{name}/room.png", "bifrost-images-"):
        text = other.fire("background-canvas", "background", files=[guess], error="")
        assert "give it again" in text, guess
    assert mine.fire("background-canvas", "background", files=[name], error="") == ""
    for visit in (mine, other):
        assert "give it again" in visit.fire("background-canvas", "background", files=[name], error="")
    for path in (f"page/files/{name}", f"page/{name}/room.png", f"v1/jobs/{name}/room.png"):
        assert mine.client.get(path).status_code == 404
    assert (folder / "page").stat().st_mode & 0o077 == 0
    assert not (folder / "page" / name).exists()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../a.png", "a.png"),
        ("C:\\images\\a.png", "a.png"),
        (".hidden.png", "hidden.png"),
        ("..", "file"),
        ("a" * 300 + ".png", "a" * 56 + ".png"),
        ("\U0001f600" * 90 + ".png", "\U0001f600" * 56 + ".png"),
        ("r\u00e4um (1).png", "r\u00e4um (1).png"),
    ],
)
def test_names_of_files_lead_nowhere(tmp_path, sent, kept):
    with running(tmp_path / "out", page=True) as client:
        [name] = client.post("/page/files", files={"files": (sent, b"a")}).json()
        assert [path.name for path in (tmp_path / "out/page" / name).iterdir()] == [kept]


def test_files_that_nobody_takes_are_removed(tmp_path):
    with running(tmp_path / "out", page=True) as client:
        send = lambda: client.post("/page/files", files={"files": ("a.png", b"a")}).json()[0]  # noqa: E731
        late, folder = send(), tmp_path / "out/page"
        os.utime(folder / late, (time.time() - 700,) * 2)
        fresh = send()
        assert {path.name for path in folder.iterdir()} == {fresh}
    with running(tmp_path / "out", page=True):
        assert list(folder.iterdir()) == []


def test_files_go_with_the_visit(tmp_path):
    with running(tmp_path / "out", page=True) as client:
        [name] = client.post("/page/files", files={"files": file("room.png")}).json()
        site, visit = Site.__new__(Site), Visit()
        site.inbox, site.settings = tmp_path / "out/page", ServeSettings()
        [path] = site.files_of(visit, SimpleNamespace(files=[name], error=""))
        assert path.read_bytes() == file("room.png")[1]
        del visit
        gc.collect()
        assert not path.exists()
        assert list(site.inbox.iterdir()) == []


def test_too_large_files_are_refused(tmp_path):
    with running(tmp_path / "out", page=True, max_mb=1) as client:
        answer = client.post("/page/files", files={"files": ("a.png", b"a" * 1_100_000)})
        assert answer.status_code == 413
        assert "larger than 1 MB" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("sizes", "files", "requests"),
    [
        ([9_000] * 4, (3, 16), 3),  # files of one request each
        ([400_000] * 3, (2000, 1), 2),  # bytes
    ],
    ids=["number", "bytes"],
)
def test_files_that_nobody_takes_are_limited(tmp_path, monkeypatch, sizes, files, requests):
    monkeypatch.setattr(page, "UNTAKEN", files)
    with running(tmp_path / "out", page=True, max_mb=1) as client:
        send = lambda size: client.post("/page/files", files={"files": ("a.png", b"a" * size)})  # noqa: E731
        answers = [send(size) for size in sizes]
        assert [answer.status_code for answer in answers] == [200] * requests + [429]
        assert answers[-1].headers["retry-after"] == str(page.WAITS)
        message = answers[-1].json()["error"]["message"]
        assert message == "too many files were sent to the page and not used; try again in 600 s"
        folder = tmp_path / "out/page"
        kept = {path.name for path in folder.iterdir()}
        assert kept == {answer.json()[0] for answer in answers[:-1]}  # nobody's file goes
        (folder / answers[0].json()[0]).rename(folder / f"{FOLDER}taken")
        assert send(sizes[0]).status_code == 200
        os.utime(folder / answers[1].json()[0], (time.time() - 700,) * 2)
        assert send(sizes[0]).status_code == 200


def test_files_of_one_request_count_each(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "UNTAKEN", (3, 16))
    with running(tmp_path / "out", page=True) as client:
        many = [("files", (f"{number}.png", b"a")) for number in range(4)]
        assert client.post("/page/files", files=many).status_code == 429
        assert list((tmp_path / "out/page").iterdir()) == []
        assert len(client.post("/page/files", files=many[:3]).json()) == 3


@pytest.mark.parametrize("layers", [None, "true"])
def test_layers_of_a_request_have_an_address(client, layers):
    answer = post(client, {**COMPOSITE, "layers": layers, "n": "2"})
    entries = answer.json()["data"]
    assert [("layers" in entry) for entry in entries] == [layers is not None] * 2
    if layers:
        found = [client.get(entry["layers"]) for entry in entries]
        for index, one in enumerate(found):
            archive = zipfile.ZipFile(io.BytesIO(one.content))
            assert json.loads(archive.read("layers.json"))["seed"] == index
            texts = [archive.read(name).decode("latin-1") for name in archive.namelist()]
            assert paths_in(texts, Path("/folder/out")) == []


def test_settings_of_the_server_name_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "networks"))
    with running(tmp_path / "out") as client:
        assert paths_in([client.get("/v1/models").text], tmp_path) == []
    assert ServeSettings().allow == ()
