"""A real server process under a small load, and killed; `benchmarks/results/serve.json` has the large one."""

import time

import httpx
import pytest

from benchmarks.serve import LONG, killed, serving
from compose.serve.app import error_for_clients
from compose.serve.jobs import Job


@pytest.mark.slow
def test_each_user_gets_the_own_image_and_the_rest_comes_again(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.serve.WAITING", 3)
    with serving(tmp_path) as server:
        row = server.at_once(12, 4)
        assert row["different_images"] == 12
        assert row["other_bytes_than_alone"] == 0
        assert row["answers_429"] > 0
        assert row["resident_mb_peak"] < row["resident_mb_before"] + 200
        cycles = server.one_after_the_other(20)
        assert cycles["at_the_end"] < cycles["resident_mb_after_a_fifth"] + 50


@pytest.mark.slow
def test_kill_loses_no_finished_result_and_leaves_no_upload(tmp_path):
    assert killed(tmp_path) == {
        "finished_result_kept": True,
        "unfinished_jobs": ["failed", "failed"],
        "reason": "the server ended before this job was done; send it again",
        "uploads_left": 0,
    }


@pytest.mark.slow
def test_job_of_a_client_that_has_gone_is_cancelled(tmp_path):
    with serving(tmp_path) as server:
        server.post(0, 0)
        server.client.timeout = httpx.Timeout(3)
        with pytest.raises(httpx.ReadTimeout):
            server.post(1, 1, **LONG)
        end = time.monotonic() + 30
        while server.client.get("/healthz").json()["running"] and time.monotonic() < end:
            time.sleep(0.1)
        assert server.client.get("/healthz").json()["running"] == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("image must be a file (--allow allows a folder)", "image must be a file (--allow allows a folder)"),
        ("it has more than 2 MB (--max-mb)", "it has more than 2 MB (--max-mb)"),
        ("not fetched here (--allow-urls allows it)", "not fetched here (--allow-urls allows it)"),
        ("--num-samples must be 1", "n must be 1"),
        ("--target-mask is empty, give --box", "mask is empty, give box"),
    ],
)
def test_errors_name_fields_of_requests_and_flags_of_the_server(tmp_path, text, shown):
    assert error_for_clients(text, Job("0" * 32, "compose", tmp_path)) == shown
