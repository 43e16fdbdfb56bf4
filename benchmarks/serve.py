"""The server under load: every user gets the own image, memory stays level, a kill loses no finished result.

    OMP_NUM_THREADS=1 python -m benchmarks.serve [--requests 100] [--users 20] [--cycles 200] [--out FILE]

A server of its own on this machine, with the small networks. Requests of different users and seeds are sent
one by one, then all at once, and the bytes compared; who is told 429 comes again after that time. Then one
request after the other, with the server's resident memory; then SIGKILL during a job.
"""

import base64
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer

from benchmarks.harness import RESULTS, Out, write_results
from ldm.files import ROOT, read_text
from ldm.images import encode_png
from ldm.settings.cli import run_module, single_app

SIDE, WAITING = 96, 32
LONG = {"steps": "1000", "n": "10"}  # a job that does not end by itself


class Server:
    def __init__(self, folder: Path) -> None:
        log = folder / "log"
        options = f"-m compose.serve --port 0 --waiting {WAITING} --devices cpu --out".split()
        with log.open("wb") as file:
            command = [sys.executable, *options, str(folder / "jobs")]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        while "page:" not in (text := read_text(log)):
            if self.process.poll() is not None:
                raise RuntimeError(text)
            time.sleep(0.1)
        url = text.partition("page:")[2].split()[0]
        self.client = httpx.Client(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))
        self.memory = psutil.Process(self.process.pid).memory_info

    def post(self, user: int, seed: int, wait: bool = True, **fields: str) -> httpx.Response:
        """The composite of one user's own images."""
        rng = np.random.default_rng(user)
        room_u8 = np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 3), np.uint8), SIDE // 6, 0), SIDE // 6, 1)
        thing_u8 = np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)
        inside = np.hypot(*np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]) < 0.8
        cutout = encode_png(thing_u8, alpha_u8=inside.astype(np.uint8) * 255)
        files = {"image": encode_png(room_u8), "reference_image": cutout}
        data = {"box": "0.3,0.2,0.7,0.9", "depth": "0.9", "seed": str(seed), **fields}
        headers = {} if wait else {"Prefer": "respond-async"}
        return self.client.post("/v1/images/edits", files=files, data=data, headers=headers)

    def one_after_the_other(self, cycles: int) -> dict[str, Any]:
        """Resident memory over many requests; the first fifth warms up."""
        resident = []
        for index in range(cycles):
            image_of(self.post(index, index))
            resident.append(self.memory().rss / 1e6)
        after, end = round(resident[cycles // 5]), round(resident[-1])
        return {"cycles": cycles, "resident_mb_after_a_fifth": after, "at_the_end": end}

    def at_once(self, requests: int, users: int) -> dict[str, Any]:
        """Send the requests one by one, then together; count what differs and what was told to come again."""
        wanted = [(index % users, index // users) for index in range(requests)]
        start = time.monotonic()
        alone = [image_of(self.post(*one)) for one in wanted]
        seconds, told, resident = time.monotonic() - start, list[int](), [self.memory().rss]

        def insist(one: tuple[int, int]) -> bytes:
            while (answer := self.post(*one)).status_code == 429:
                told.append(int(answer.headers["retry-after"]))
                resident.append(self.memory().rss)
                time.sleep(told[-1])
            resident.append(self.memory().rss)
            return image_of(answer)

        start = time.monotonic()
        with ThreadPoolExecutor(requests) as pool:
            together = list(pool.map(insist, wanted))
        return {
            "requests": requests, "users": users, "different_images": len(set(alone)),
            "other_bytes_than_alone": sum(a != b for a, b in zip(alone, together, strict=True)),
            "answers_429": len(told), "seconds_one_by_one": round(seconds, 1),
            "seconds_at_once": round(time.monotonic() - start, 1),
            "resident_mb_before": round(resident[0] / 1e6), "resident_mb_peak": round(max(resident) / 1e6),
        }  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def image_of(answer: httpx.Response) -> bytes:
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])


def killed(folder: Path) -> dict[str, Any]:
    """SIGKILL while one job runs and one waits; then what the next server on the same folder has."""
    with serving(folder) as server:
        expected = image_of(server.post(0, 0))
        done = server.post(0, 0, wait=False).headers["location"]
        while server.client.get(done).json()["state"] != "done":
            time.sleep(0.02)
        lost = [server.post(1, 1, wait=False, **LONG).headers["location"] for _ in range(2)]
        while not server.client.get(lost[0]).json()["step"]:
            time.sleep(0.02)
        server.process.kill()
        server.process.wait()
        with serving(folder) as after:
            paths = [httpx.URL(url).path for url in (done, *lost)]
            job, *others = [after.client.get(path).json() for path in paths]
            image = after.client.get(httpx.URL(job["result"]["data"][0]["url"]).path).content
            uploads, states = list((folder / "jobs").rglob("*uploads*/*")), [each["state"] for each in others]
            return {
                "finished_result_kept": image == expected, "unfinished_jobs": states,
                "reason": others[0]["error"], "uploads_left": len(uploads)}  # fmt: skip


def measure(
    out: Out = RESULTS / "serve.json",
    requests: Annotated[int, typer.Option(help="requests at once", min=1)] = 100,
    users: Annotated[int, typer.Option(help="users, each with own images", min=1)] = 20,
    cycles: Annotated[int, typer.Option(help="requests one after the other", min=5)] = 200,
) -> None:
    """Load the server, fill its queue, kill it; write what was lost, mixed up or kept in memory."""
    from ldm.device import code_revision

    with TemporaryDirectory() as name:
        folder = Path(name)
        body: dict[str, Any] = {"revision": code_revision(), "waiting": WAITING}
        with serving(folder) as server:
            body["at_once"] = server.at_once(requests, users)
            body["one_by_one"] = server.one_after_the_other(cycles)
        write_results(out, {**body, "killed": killed(folder)})


build_app = single_app(measure)

if __name__ == "__main__":
    run_module(build_app)
