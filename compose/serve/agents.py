"""Tools for agents over the Model Context Protocol, at /mcp: images by path or address, results as JSON text.

A call becomes a request to the HTTP API of the same server, with its account, limits and queue. No image
passes through the conversation. The library `mcp` is optional; without it /mcp says so.
"""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import httpx
from starlette.requests import Request
from starlette.types import ASGIApp

from compose.serve.fields import field_schemas
from compose.serve.guard import error_json
from compose.serve.jobs import ENDED
from compose.serve.settings import MOST_IMAGES, ServeSettings
from compose.serve.uploads import new_file
from ldm import __version__
from ldm.doctor import lacks_mcp
from ldm.result import sample_paths, write_result
from ldm.settings.schema import nearest

POLL_S = 0.2  # seconds between two looks at a job; chosen
HOW = "Images are named by a path below a folder that the server allows, or by a public address if it may ask"
TOOLS = {  # name -> end of the address it stands for, the kinds of its fields, what it needs, what it does
    "place": ("places", "place", ("image", "reference_image", "instruction"),
        "Propose boxes and depths for an object (reference_image) where a sentence says; paints nothing."),
    "compose": ("edits", "compose", ("image", "reference_image"),
        "Put an object (reference_image) into an image: at a box, where a sentence says, or in a mask. "
        "Nearer things hide it; drift counts the pixels that changed elsewhere."),
    "paint": ("edits", "paint", ("image", "regions"),
        "Paint regions of an image in one pass, each with its own prompt."),
    "dream": ("edits", "paint", ("image", "regions"),
        "As paint; a model that sees the image writes the prompts of regions that have none."),
    "replay": ("replays", "replay", ("result",),
        "Paint a composite again by the recipe in its PNG; inputs and networks must be the same ones."),
    "describe_models": ("models", "", (), "Which networks work here, what for, and what requests may hold."),
}  # fmt: skip
PLAIN = {"prompt", "model", "size", "response_format", "output_format"}  # fields for other clients


def tool_schema(kind: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """JSON Schema of the arguments of a tool, from the settings."""
    unused = {*PLAIN, "mask"} if kind == "paint" else PLAIN  # regions have their own
    fields = {name: one for name, one in field_schemas(kind).items() if name not in unused} if kind else {}
    text, number = {"type": "string"}, {"type": "number"}
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    each = {"prompt": text, "negative": text, "box": box, "mask": {**text, "description": "white is painted"}}
    region = {"type": "object", "properties": each, "additionalProperties": False}
    special = {
        "n": {"type": "integer", "minimum": 1, "maximum": MOST_IMAGES},
        "anchors": {"type": "object", "description": "name of a thing -> its box and depth, if known"},
        "regions": {"type": "array", "items": region, "minItems": 1},
    }
    fields |= {name: one for name, one in special.items() if name in fields}
    if kind not in ("", "place"):
        fields["out"] = {**text, "description": "new PNG below an allowed folder; several images get numbers"}
    body = {"type": "object", "properties": fields, "required": [*needed]}
    return {**body, "additionalProperties": False}


async def answer(
    tool: str,
    given: dict[str, Any],
    client: httpx.AsyncClient,
    settings: ServeSettings,
    tell: Callable[..., Any],
) -> dict[str, Any]:
    """The result of a call. tell: await tell(step, total). ValueError says what was wrong."""

    async def ask(method: str, path: str, **more: Any) -> Any:
        found = await client.request(method, path, **more)
        if found.is_error:
            known = found.headers.get("content-type", "").startswith("application/json")
            raise ValueError(found.json()["error"]["message"] if known else "the server failed; see its log")
        return found.json() if method != "DELETE" else None

    if tool not in TOOLS:
        raise ValueError(nearest(tool, TOOLS, "tool"))
    end, kind, *_ = TOOLS[tool]
    if not kind:
        return await ask("GET", "v1/models")
    out, count = given.pop("out", None), given.get("n", 1)
    names = [] if out is None else [path.as_posix() for path in sample_paths(Path(out), count)]
    for name in names:  # before the work too
        new_file("out", name, settings)
    masks, regions = [], [dict(region) for region in given.get("regions", ())]
    for number, region in enumerate(regions, 1):
        if tool == "paint" and not region.get("prompt"):
            raise ValueError(f"region {number} has no prompt; the tool dream writes one")
        if "mask" in region:
            masks.append(("mask", (None, region.pop("mask"))))
    fields = {**given, **({"regions": regions} if regions else {})}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    parts = [*((name, (None, text)) for name, text in texts.items()), *masks]
    job = await ask("POST", f"v1/images/{end}", files=parts, headers={"Prefer": "respond-async"})
    path, step = f"v1/jobs/{job['id']}", 0
    try:
        while (job := await ask("GET", path))["state"] not in ENDED:
            if job["step"] != step:
                await tell(step := job["step"], job["total"])
            await anyio.sleep(POLL_S)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await ask("DELETE", path)
        raise
    if job["state"] != "done":
        raise ValueError(job["error"] or "the job was cancelled")
    result = {name: value for name, value in job["result"].items() if name not in ("recipe", "images")}
    for image, name in zip(result["data"], names, strict=False):
        data, place = (await client.get(image["url"])).content, new_file("out", name, settings)
        try:
            write_result({place: data})
        except (OSError, ValueError):
            raise ValueError(f"out: {name} cannot be written; the image is at {image['url']}") from None
        image["path"] = name
    return {"id": job["id"], "expires": job["expires"], **result}


def agents_at(
    app: ASGIApp, settings: ServeSettings
) -> tuple[ASGIApp, Callable[[], AbstractAsyncContextManager]]:
    """The application for /mcp, and what must run around the server. app: the server itself."""
    if missing := lacks_mcp():
        return error_json(501, missing), nullcontext
    from mcp.server.fastmcp.server import StreamableHTTPASGIApp
    from mcp.server.lowlevel import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.types import TextContent, Tool

    logging.getLogger("mcp").setLevel(logging.WARNING)
    logging.getLogger("mcp.server.streamable_http").setLevel(
        logging.CRITICAL
    )  # every ended session is an "error"
    server: Any = Server("bifrost", __version__, instructions=f"{HOW}; describe_models says what holds here.")

    @server.list_tools()
    async def list_tools() -> list[Tool]:
        return [
            Tool(name=name, description=f"{what} {HOW}.", inputSchema=tool_schema(kind, needed))
            for name, (_, kind, needed, what) in TOOLS.items()
        ]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[TextContent]:
        context = server.request_context
        request: Request = context.request
        token = context.meta and context.meta.progressToken

        async def tell(step: int, total: int) -> None:
            if token is not None:
                about = {"related_request_id": str(context.request_id)}
                await context.session.send_progress_notification(token, step, total, **about)

        asker = (request.client.host, request.client.port) if request.client else ("", 0)
        account = {key: value for key, value in request.headers.items() if key == "authorization"}
        inside = httpx.ASGITransport(app, raise_app_exceptions=False, client=asker)
        async with httpx.AsyncClient(
            transport=inside, base_url=str(request.base_url), headers=account
        ) as client:
            result = await answer(name, arguments, client, settings, tell)
        return [TextContent(type="text", text=json.dumps(result))]

    manager = StreamableHTTPSessionManager(server)
    return StreamableHTTPASGIApp(manager), manager.run
