"""Client of a Bifrost server (`python -m compose.serve`): this file, the standard library, Python 3.10.

    server = Bifrost("http://127.0.0.1:7860", auth="anne:secret")
    made = server.edit("room.png", reference_image="dog.png", instruction="Place the dog behind the sofa")
    made.save("out.png")
    server.edit("room.png", mask=["a.png", "b.png"], regions=[{"prompt": "a red cube"}, {"prompt": ""}])

Fields are those of the HTTP API (docs/serve.md). Images are paths of files here, or bytes; an http(s) address
is fetched by the server. Ctrl-C cancels the job.
"""

import base64
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], Any]  # called with step and total
PICTURES = {"image", "mask", "result", "reference_image", "reference_mask", "depth_map", "reference_depth"}
POLL_S, TIMEOUT_S = 0.2, 300  # seconds between two looks at a job; in which the server must answer


class BifrostError(Exception):
    """What the server says of a request that it does not take, or of a job that failed. status: of HTTP."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Finished:
    """A finished job. images: PNGs with their recipes; report: all else that the server says of it."""

    images: list[bytes]
    report: dict[str, Any]

    def save(self, path: str | Path) -> list[Path]:
        """Write the image, or NAME_0.png, NAME_1.png, ...; FileExistsError where one is there already."""
        path, many = Path(path), len(self.images) > 1
        names = [path.with_stem(f"{path.stem}_{i}") if many else path for i in range(len(self.images))]
        for name, data in zip(names, self.images, strict=True):
            with name.open("xb") as file:
                file.write(data)
        return names


class Bifrost:
    """A server. auth: USER:PASSWORD; patience: seconds to come again for while its queue is full."""

    def __init__(self, url: str = "http://127.0.0.1:7860", auth: str = "", patience: float = 60) -> None:
        self.url, self.patience, self.headers = url.rstrip("/"), patience, dict[str, str]()
        if auth:
            self.headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"

    def edit(self, image: Any, on_progress: Progress | None = None, **fields: Any) -> Finished:
        """Compose (`reference_image`) or paint (`mask`, `regions`)."""
        return self._job("edits", {"image": image, **fields}, on_progress)

    def place(
        self, image: Any, reference_image: Any, instruction: str, **fields: Any
    ) -> list[dict[str, Any]]:
        """Where a sentence puts the object: box (x1, y1, x2, y2 in fractions), depth; the best first."""
        fields |= {"image": image, "reference_image": reference_image, "instruction": instruction}
        return self._job("places", fields).report["places"]

    def replay(self, result: Any, **images: Any) -> Finished:
        """A composite again by the recipe in its PNG; images: those it was made from."""
        return self._job("replays", {"result": result, **images})

    def models(self) -> dict[str, Any]:
        """The models and networks, and what requests may hold."""
        return json.loads(self._ask("GET", "/v1/models"))

    def _job(self, end: str, fields: dict[str, Any], on_progress: Progress | None = None) -> Finished:
        body, kind = encode_form(fields)
        sent = self._ask("POST", f"/v1/images/{end}", body, {"Content-Type": kind, "Prefer": "respond-async"})
        job = json.loads(sent)
        path = f"/v1/jobs/{job['id']}"
        try:
            while job["state"] in ("queued", "running"):
                time.sleep(POLL_S)
                before, job = job["step"], json.loads(self._ask("GET", path))
                if on_progress and job["step"] != before:
                    on_progress(job["step"], job["total"])
        except BaseException:
            self._ask("DELETE", path)
            raise
        if job["state"] != "done":
            raise BifrostError(job["error"] or "the job was cancelled")
        report = {"id": job["id"], **job["result"]}
        names = [image["file"] for image in report.pop("images", ())]
        return Finished([self._ask("GET", f"{path}/{name}") for name in names], report)

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        headers = {**self.headers, **(headers or {})}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        end = time.monotonic() + self.patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                wait = float(error.headers.get("Retry-After") or 1)
                if error.code == 429 and time.monotonic() + wait < end:
                    time.sleep(wait)
                    continue
                text = error.read()
                known = "json" in error.headers.get("Content-Type", "")
                raise BifrostError(
                    json.loads(text)["error"]["message"] if known else error.reason, error.code
                ) from None


def encode_form(fields: dict[str, Any]) -> tuple[bytes, str]:
    """multipart/form-data (RFC 7578) and its content type; None stays out, lists of images repeat."""
    boundary, body = uuid.uuid4().hex, b""
    for name, value in fields.items():
        picture = name in PICTURES
        for one in value if picture and isinstance(value, list) else [] if value is None else [value]:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
            if picture and not (isinstance(one, str) and one.startswith(("http://", "https://"))):
                data = one if isinstance(one, bytes) else Path(one).read_bytes()
                head += f'; filename="{name}"\r\nContent-Type: application/octet-stream'
            else:
                data = (one if isinstance(one, str) else json.dumps(one)).encode()
            body += f"{head}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
