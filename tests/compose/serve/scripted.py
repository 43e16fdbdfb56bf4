"""A visitor of the page without a browser, sending what the page's own script sends; and a reverse proxy."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


def proxy(behind: str, root: str) -> Starlette:
    """Passes root/PATH on to behind/PATH, with its own host, as nginx does; nothing else is there."""
    client = httpx.AsyncClient(base_url=behind, timeout=60)

    async def passed(request: Request) -> StreamingResponse:
        path = httpx.URL(path=f"/{request.path_params['path']}", query=request.url.query.encode())
        more = {"headers": request.headers.raw, "content": request.stream()}
        sent = client.build_request(request.method, path, **more)
        answer = await client.send(sent, stream=True)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, answer.headers)

    methods = ["GET", "POST", "DELETE", "HEAD"]
    return Starlette(routes=[Route(f"{root}/{{path:path}}", passed, methods=methods)])


class Scripted:
    """One visit; `answers` has every text that the server has sent."""

    def __init__(self, address: str) -> None:
        self.answers: list[str] = []
        self.acts: dict[str, list[dict[str, Any]]] = {}
        self.client = httpx.Client(base_url=address, timeout=60)
        self.session, self.page = uuid.uuid4().hex, self.get("")
        self.config = json.loads(self.get("config"))
        self.values = {part["id"]: part["props"].get("value") for part in self.config["components"]}
        self.names = {part["props"].get("elem_id"): part["id"] for part in self.config["components"]}
        self.fire(None, "load")

    def get(self, path: str) -> str:
        answer = self.client.get(path)
        self.answers.append(str(answer.headers) + answer.text)
        return answer.text

    def send(self, *files: tuple[str, bytes]) -> list[str]:
        """Files, as the page sends them; returns their names."""
        parts = [("files", (name, data, "application/octet-stream")) for name, data in files]
        answer = self.client.post("page/files", files=parts)
        self.answers.append(str(answer.headers) + answer.text)
        return answer.json()

    def give(self, canvas: str, button: str, *files: tuple[str, bytes]) -> str:
        return self.fire(canvas, button, files=self.send(*files), error="")

    def draw(self, surface: str, **act: Any) -> str:
        """Something done on a surface, and its event."""
        self.acts.setdefault(surface, []).append({"number": len(self.acts.get(surface, ())) + 1, **act})
        return self.fire(f"{surface}-canvas", "draw")

    def fire(self, name: str | None, event: str, **data: Any) -> str:
        """An event of a component, and what follows it; returns the last error."""
        part, error = None if name is None else self.names[name], ""
        for function in self.config["dependencies"]:
            if any(target[1] == event and part in (None, target[0]) for target in function["targets"]):
                error = self.run(function, part, data)
        return error

    def run(self, function: dict[str, Any], part: int | None, data: dict[str, Any]) -> str:
        given = [self.values.get(number) for number in function["inputs"]]
        if ".acts" in str(function["js"]):  # what the script of the page puts there
            given[1] = {name: acts for name, acts in self.acts.items() if f'"{name}"' in function["js"]}
            for act in (act for acts in given[1].values() for act in acts):
                act.setdefault("means", given[2:4])
        body = {"data": given, "event_data": data, "fn_index": function["id"], "trigger_id": part}
        answer = self.client.post("gradio_api/run/predict", json={**body, "session_hash": self.session})
        self.answers.append(answer.text)
        assert answer.status_code == 200, answer.text
        for number, value in zip(function["outputs"], answer.json()["data"], strict=False):
            is_update = isinstance(value, dict) and value.get("__type__") == "update"
            if not is_update or "value" in value:
                self.values[number] = value["value"] if is_update else value
        told = answer.json()["data"][-1]  # of a status
        if not isinstance(told, dict) or "work" not in told:
            return ""
        if told["work"] and "error" not in told:
            time.sleep(0.05)
            number = function["outputs"][-1]
            [ask] = [one for one in self.config["dependencies"] if [number, "ask"] in one["targets"]]
            return self.run(ask, number, {"work": told["work"]})
        return told.get("error", "")

    def value(self, name: str) -> Any:
        return self.values[self.names[name]]
