"""Files served on this machine, with bad luck on demand."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

COLUMNS = "file_name,url,modifier,split\n"


def jpeg(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60)).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def pointer(data: bytes) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; a path may have bad luck first: codes to answer with, or "short", "slow", "hang up"."""

    files: dict[str, bytes] = {}
    luck: dict[str, list[int | str]] = {}
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        fate = self.luck.get(self.path, [])
        luck = fate.pop(0) if len(fate) > 1 or (fate and fate[0] != "always") else None
        if isinstance(luck, int):
            self.send_error(luck)
            return
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        if luck == "hang up":
            self.connection.close()
            return
        if luck == "slow":
            time.sleep(0.4)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : len(data) // 2] if luck == "short" else data[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Body of a fixture: the address of a running server with no files yet."""
    for name, empty in (("files", {}), ("luck", {}), ("asked", Counter())):
        monkeypatch.setattr(Server, name, empty)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    monkeypatch.setattr(
        server, "handle_error", lambda *_: None
    )  # a client that gives up is part of the tests
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
