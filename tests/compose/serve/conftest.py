"""A server in this process, with small networks, for the tests of a file, and a visitor in a browser."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.compose.serve.browsing import Visit, served
from tests.compose.serve.serving import running

MISSING = (
    "needs a browser: pip install playwright, then apt-get install chromium (or playwright install chromium)"
)
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_compositor, small_depth_network):
    path = tmp_path_factory.mktemp("config") / "compose.yaml"
    path.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def client(tmp_path_factory, config):
    with running(tmp_path_factory.mktemp("server") / "out", compose_config=config) as client:
        yield client


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("serve") / "out") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason=MISSING)
    found = os.environ.get("BIFROST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except sync_api.Error as error:
            pytest.skip(f"{MISSING}: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    visit = Visit(browser, address)
    yield visit
    visit.context.close()
    assert not visit.errors
    assert {url.split("/")[2] for url in visit.foreign if url.startswith("http")} == {address.split("/")[2]}
