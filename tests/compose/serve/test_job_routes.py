"""Jobs over HTTP: progress, preview, cancelling, limits, results that outlive the server."""

import json
import threading
import time

from tests.compose.serve.serving import (
    COMPOSITE,
    busy,
    decoded,
    images,
    post,
    refusal,
    running,
)


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


def test_result_outlives_the_server(tmp_path, config):
    with running(tmp_path / "out", compose_config=config) as client:
        url = post(client, {**COMPOSITE, "response_format": "url"}).json()["data"][0]["url"]
        data, job = client.get(url).content, client.get(url.rpartition("/")[0]).json()
    with running(tmp_path / "out", compose_config=config) as client:
        assert client.get(url).content == data
        assert client.get(url.rpartition("/")[0]).json() == job
