"""A server in this process, with small networks, for the tests of a file."""

import pytest

from tests.compose.serve.serving import running


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_compositor, small_depth_network):
    path = tmp_path_factory.mktemp("config") / "compose.yaml"
    path.write_text(f"model: {small_compositor}\ndepth_model: {small_depth_network}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def client(tmp_path_factory, config):
    with running(tmp_path_factory.mktemp("server") / "out", compose_config=config) as client:
        yield client
