"""The server and the doctor without the library of the tools for agents, and with another version of it."""

import importlib.metadata
from pathlib import Path

import pytest

from ldm import doctor
from tests.compose.serve.serving import refusal, running

ACCOUNT = "anne:secret"


@pytest.fixture
def without(monkeypatch):
    """The installed version of mcp is another one, or there is none."""
    real = importlib.metadata.version

    def pretend(found):
        def version(name):
            if name == "mcp" and found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found if name == "mcp" else real(name)

        monkeypatch.setattr(doctor, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "the library mcp is missing"),
        ("2.3.0", "mcp 2.3.0 is no 1.x"),
        ("0.9.1", "mcp 0.9.1 is no 1.x"),
    ],
)
def test_missing_library_is_named(without, tmp_path: Path, found, said):
    without(found)
    text = f"no tools: {said}; pip install mcp==1.30.0 (requirements-extras.txt)"
    assert doctor.lacks_mcp() == text
    assert f"compose.serve, for agents: {text}" in doctor.report_sections()["would be gained"]
    with running(tmp_path / "out", auth=ACCOUNT) as client:
        for method in ("GET", "POST", "DELETE"):
            assert client.request(method, "/mcp").status_code == 401
            answer = client.request(method, "/mcp", headers={"Authorization": f"Bearer {ACCOUNT}"})
            assert (answer.status_code, refusal(answer)) == (501, text)


def test_installed_library_is_used(without):
    without("1.30.0")
    assert doctor.lacks_mcp() == ""
    assert "compose.serve, for agents: /mcp" in doctor.report_sections()["works now"]
