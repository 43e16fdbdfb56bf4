"""Tools for agents over the Model Context Protocol, at /mcp: images by path or address, results as JSON text.

A call is read as a form of the HTTP API is, with its limits and queue. No image
passes through the conversation. The library `mcp` is optional; without it /mcp says so.
"""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import anyio
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from compose.serve import rest
from compose.serve.guard import error_json
from compose.serve.jobs import ENDED
from compose.serve.settings import MOST_IMAGES, field_schemas
from compose.serve.uploads import new_file
from ldm import __version__
from ldm.doctor import lacks_mcp
from ldm.result import sample_paths, write_result
from ldm.settings.schema import nearest

HOW = "Images are named by a path below a folder that the server allows, or by a public address if it may ask"
TOOLS = {  # name -> kind of its work, what it needs, what it does
    "place": ("place", ("image", "reference_image", "instruction"),
        "Propose boxes and depths for an object (reference_image) where a sentence says; paints nothing."),
    "compose": ("compose", ("image", "reference_image"),
        "Put an object (reference_image) into an image: at a box, where a sentence says, or in a mask. "
        "Nearer things hide it; drift counts the pixels that changed elsewhere."),
    "paint": ("paint", ("image", "regions"),
        "Paint regions of an image in one pass, each with its own prompt."),
    "dream": ("paint", ("image", "regions"),
        "As paint; a model that sees the image writes the prompts of regions that have none."),
    "replay": ("replay", ("result",),
        "Paint a composite again by the recipe in its PNG; inputs and networks must be the same ones."),
    "describe_models": ("", (), "Which networks work here, what for, and what requests may hold."),
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
    return {"type": "object", "properties": fields, "required": [*needed], "additionalProperties": False}


async def answer(
    tool: str, given: dict[str, Any], request: Request, tell: Callable[..., Any]
) -> dict[str, Any]:
    """The result of a call. tell: await tell(step, total). ValueError, HTTPException: what was wrong."""
    if tool not in TOOLS:
        raise ValueError(nearest(tool, TOOLS, "tool"))
    kind, *_ = TOOLS[tool]
    if not kind:
        return rest.known_models(request)
    settings, queue = request.app.state.settings, request.app.state.queue
    out, count = given.pop("out", None), given.get("n", 1)
    names = [] if out is None else [path.as_posix() for path in sample_paths(Path(out), count)]
    for name in names:  # before the work too
        new_file("out", name, settings)
    masks, regions = [], [dict(region) for region in given.get("regions", ())]
    for number, region in enumerate(regions, 1):
        if tool == "paint" and not region.get("prompt"):
            raise ValueError(f"region {number} has no prompt; the tool dream writes one")
        if "mask" in region:
            masks.append(("mask", region.pop("mask")))
    fields = {**given, **({"regions": regions} if regions else {})}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    _, job = await rest.begin(request, kind, lambda: nullcontext(FormData([*texts.items(), *masks])))
    step = 0
    try:
        while job.state not in ENDED:
            if job.step != step:
                await tell(step := job.step, job.total)
            await anyio.sleep(rest.POLL_S)
    finally:
        if job.state not in ENDED:
            queue.cancel(job)
    if job.state != "done" or job.result is None:
        raise ValueError(job.error or "the job was cancelled")
    status, hidden = rest.job_status(job, request), ("recipe", "images", "files")
    result = {name: value for name, value in status["result"].items() if name not in hidden}
    for image, made, name in zip(result["data"], job.result.get("images", ()), names, strict=False):
        data, place = (job.folder / made["file"]).read_bytes(), new_file("out", name, settings)
        try:
            write_result({place: data})
        except (OSError, ValueError):
            raise ValueError(f"out: {name} cannot be written; the image is at {image['url']}") from None
        image["path"] = name
    return {"id": job.id, "expires": status["expires"], **result}


def agents_at() -> tuple[ASGIApp, Callable[[], AbstractAsyncContextManager]]:
    """The application for /mcp, and what must run around the server."""
    if missing := lacks_mcp():
        return error_json(501, missing), nullcontext
    from mcp.server.fastmcp.server import StreamableHTTPASGIApp
    from mcp.server.lowlevel import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.types import TextContent, Tool

    logging.getLogger("mcp").setLevel(logging.WARNING)
    http = logging.getLogger("mcp.server.streamable_http")
    http.setLevel(logging.CRITICAL)  # every ended session is an "error"
    server: Any = Server("bifrost", __version__, instructions=f"{HOW}; describe_models says what holds here.")

    @server.list_tools()
    async def list_tools() -> list[Tool]:
        return [
            Tool(name=name, description=f"{what} {HOW}.", inputSchema=tool_schema(kind, needed))
            for name, (kind, needed, what) in TOOLS.items()
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

        try:
            result = await answer(name, arguments, request, tell)
        except HTTPException as error:
            raise ValueError(error.detail) from None
        return [TextContent(type="text", text=json.dumps(result))]

    manager = StreamableHTTPSessionManager(server)
    return StreamableHTTPASGIApp(manager), manager.run
