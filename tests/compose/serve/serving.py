"""A server in this process with small networks, and the requests of its tests."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from compose.serve.app import make_api, make_app, make_queue
from compose.serve.jobs import JobQueue
from compose.serve.settings import ServeSettings
from ldm.images import encode_png
from tests.images import room, room_depth, thing

H, W = 96, 128


@contextmanager
def running(folder: Path, page: bool = False, **options: Any) -> Iterator[TestClient]:
    """A client of a new server, of the API alone or with the page; `client.queue` is its queue."""
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = ServeSettings(out=folder, devices=("cpu",), **options)
    queue = make_queue(settings)
    app = (make_app if page else make_api)(settings, queue)
    client = TestClient(app, base_url="http://127.0.0.1:7860", root_path=settings.root_path)
    client.queue = queue
    try:
        yield client
    finally:
        queue.close()


@contextmanager
def listening(folder: Path, **options: Any) -> Iterator[tuple[str, JobQueue]]:
    """The address and the queue of a new server, without the page, that listens on this machine."""
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = ServeSettings(out=folder, devices=("cpu",), **options)
    queue = make_queue(settings)
    config = uvicorn.Config(make_api(settings, queue), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", queue
        finally:
            server.should_exit = True
            queue.close()
            thread.join(20)


def png(image: np.ndarray, alpha_u8: np.ndarray | None = None) -> bytes:
    return encode_png(image, alpha_u8=alpha_u8)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def square(y: int = 50, x: int = 40, side: int = 30) -> np.ndarray:
    """(H, W) bool"""
    mask = np.zeros((H, W), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def white(mask: np.ndarray) -> bytes:
    return png(mask.astype(np.uint8) * 255)


def transparent(mask: np.ndarray, rgb_u8: np.ndarray | None = None) -> bytes:
    """As OpenAI's clients send it: alpha 0 where the mask is."""
    return png(room(H, W) if rgb_u8 is None else rgb_u8, np.where(mask, 0, 255).astype(np.uint8))


def depth() -> bytes:
    return png(np.rint(room_depth(H, W) * 65535).astype(np.uint16))


COMPOSITE = {
    "image": png(room(H, W)),
    "reference_image": png(*[thing()[0]]),
    "reference_mask": white(thing()[1]),
    "depth_map": depth(),
    "box": "0.3,0.2,0.7,0.9",
    "depth": "0.6",
}
PAINTING = {"image": png(room(H, W)), "mask": transparent(square()), "prompt": "a red cube", "steps": "1"}


def post(
    client: TestClient, fields: dict[str, Any], path: str = "/v1/images/edits", **options: Any
) -> httpx.Response:
    """Bytes are sent as files, the rest as text; lists as several parts."""
    files, data = [], {}
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bytes):
                files.append((name, (f"{name}.bin", each, "application/octet-stream")))
            elif each is not None:
                data.setdefault(name, []).append(each)
    if not files:
        files = [(name, (None, text)) for name, texts in data.items() for text in texts]
        data = {}
    return client.post(path, files=files, data=data, **options)


def refusal(answer: httpx.Response) -> str:
    """The message of an error, which has the form of OpenAI's."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def images(answer: httpx.Response) -> list[bytes]:
    """The images of an answer."""
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


def busy(client: TestClient) -> threading.Event:
    """Keep the worker busy until the returned event is set."""
    gate, job = threading.Event(), client.queue.open("test")
    client.queue.submit(job, lambda job, own: gate.wait(20) and {} or {})
    while job.state == "queued":
        time.sleep(0.005)
    return gate
