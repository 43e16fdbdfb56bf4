"""The HTTP API: `POST /v1/images/edits` as clients of OpenAI's send it, jobs with progress, health, models.

What is not understood is refused by name. Errors have the form {"error": {"message": ...}}.
"""

import asyncio
import base64
import html
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from compose.serve.guard import error_json
from compose.serve.jobs import ENDED, Job, QueueFull
from compose.serve.page_jobs import networks_here
from compose.serve.request import EditRequest
from compose.serve.settings import MOST_IMAGES, edit_schema
from ldm import __version__

UPLOAD_S = 300  # seconds in which a request must have arrived; chosen
POLL_S = 0.2  # seconds between two looks at a job; chosen
KINDS = {"edits": "", "places": "place", "replays": "replay"}  # end of an address -> its kind of work
MOST_PARTS = 200  # of a form; chosen: more than all fields and a mask for every colour

router = APIRouter()


def error_answer(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, QueueFull):
        return error_json(429, str(error), {"Retry-After": str(error.retry_after)})
    return error_json(error.status_code, error.detail, error.headers)


def known_job(identity: str, request: Request) -> Job:
    try:
        return request.app.state.queue.get(identity)
    except KeyError:
        raise HTTPException(404, "no such job, or its results are deleted") from None


Found = Annotated[Job, Depends(known_job)]


def data_of(job: Job, request: Request, as_url: bool) -> list[dict[str, Any]]:
    """The images of a job that is done, as the API of OpenAI has them, with seed and drift."""
    data = []
    for image in (job.result or {}).get("images", ()):
        names = {"url": image["file"], **({"layers": image["layers"]} if "layers" in image else {})}
        address = partial(request.url_for, "image", identity=job.id)
        entry = {what: str(address(name=name)) for what, name in names.items()}
        if not as_url:
            del entry["url"]
            entry["b64_json"] = base64.b64encode((job.folder / image["file"]).read_bytes()).decode()
        data.append({**entry, "seed": image["seed"], "drift": image["drift"]})
    return data


@router.get("/v1/jobs/{identity}", name="job")
def job_status(job: Found, request: Request) -> dict[str, Any]:
    """State, progress and, when it is done, result of a job, with the addresses of its images."""
    queue = request.app.state.queue
    known = {**job.as_json(), "position": queue.position(job)}
    known["expires"] = None if job.ended is None else job.ended + queue.keep_s
    if job.result is not None:
        known["result"] = {**job.result, "data": data_of(job, request, as_url=True)}
    return known


async def begin(
    request: Request, kind: str, form: Callable[[], AbstractAsyncContextManager[FormData]]
) -> tuple[EditRequest, Job]:
    """Read a form, and send its job; HTTPException says what was wrong. kind: as in `EditRequest`"""
    queue, state = request.app.state.queue, request.app.state
    job = queue.open("edit", request.client.host if request.client else "")
    try:
        with anyio.fail_after(UPLOAD_S):
            async with form() as fields:
                wanted = EditRequest(fields, job, state.settings, kind)
                job.kind = wanted.kind
                queue.submit(job, await run_in_threadpool(wanted.work, state.models))
        return wanted, job
    except BaseException as error:
        queue.cancel(job)
        if isinstance(error, ValueError):
            raise HTTPException(400, queue.clean(str(error), job)) from None
        if isinstance(error, TimeoutError):
            raise HTTPException(408, f"the request did not arrive within {UPLOAD_S} s") from None
        if isinstance(error, OSError):
            logging.getLogger(__name__).exception("job %s", job.id)
            raise HTTPException(507, "the server could not store the request; its log says why") from None
        raise


@router.post("/v1/images/places", openapi_extra=edit_schema("place"))
@router.post("/v1/images/replays", openapi_extra=edit_schema("replay"))
@router.post("/v1/images/edits", openapi_extra=edit_schema("compose", "paint"))
async def edit(request: Request) -> Response:
    """Put an object into an image (with `reference_image`), or paint masks of it.

    `places` says where a sentence puts the object; `replays` paints a composite again by its recipe.

    With the header `Prefer: respond-async` the answer is 202 and the job, else the finished images.
    """
    if request.query_params:
        raise HTTPException(400, "fields belong into the form, not into the address")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "a multipart/form-data form is needed")
    form = partial(request.form, max_files=MOST_PARTS, max_fields=MOST_PARTS)
    wanted, job = await begin(request, KINDS[request.url.path.rpartition("/")[2]], form)
    if "respond-async" in request.headers.get("prefer", ""):
        where = str(request.url_for("job", identity=job.id))
        return JSONResponse(job_status(job, request), 202, {"Location": where})
    try:
        finished = asyncio.wrap_future(job.finished)
        while not (await asyncio.wait({finished}, timeout=POLL_S))[0]:
            if await request.is_disconnected():
                return Response(status_code=499)  # as nginx has it; nobody reads it
    finally:
        if job.state not in ENDED:
            request.app.state.queue.cancel(job)
    if job.state != "done":
        code = 409 if job.state == "cancelled" else 400 if job.invalid else 500
        raise HTTPException(code, job.error or "the job was cancelled")
    data = await run_in_threadpool(data_of, job, request, wanted.text("response_format") == "url")
    facts = {name: value for name, value in (job.result or {}).items() if name not in ("images", "files")}
    return JSONResponse({"created": int(job.created), "id": job.id, "data": data, **facts})


@router.get("/v1/jobs/{identity}/events", response_class=EventSourceResponse)
async def events(job: Found, request: Request) -> AsyncIterator[dict[str, Any]]:
    """The same at every change, as server-sent events, until the job has ended."""
    last: Any = None
    while last is None or last["state"] not in ENDED:
        if (now := job_status(job, request)) != last:
            yield (last := now)
        else:
            await asyncio.sleep(POLL_S)


@router.get("/v1/jobs/{identity}/preview")
def look(job: Found) -> Response:
    """A PNG of a step while the job runs; 204 until there is one. Asking has the next step decoded."""
    preview = job.look()
    return Response(status_code=204) if preview is None else Response(preview, media_type="image/png")


@router.get("/v1/jobs/{identity}/{name}", name="image")
def image(job: Found, name: str) -> FileResponse:
    """An image of a job that is done, a PNG that carries its recipe, or its layers."""
    if name not in (job.result or {}).get("files", ()):
        raise HTTPException(404, "no such image")
    return FileResponse(job.folder / name)


@router.delete("/v1/jobs/{identity}", status_code=204)
def end_job(job: Found, request: Request) -> None:
    """End a job before its next step; delete the results of one that has ended."""
    request.app.state.queue.cancel(job)


@router.get("/docs", include_in_schema=False)
def described(request: Request) -> HTMLResponse:
    """The description of the API for people: its routes and the fields of their forms."""
    text = "<!doctype html><meta charset=utf-8><title>Bifrost</title><style>body {font: 1em arial}</style>"
    for path, methods in request.app.openapi()["paths"].items():
        for method, about in methods.items():
            text += f"<h3>{method.upper()} {path}</h3><p>{html.escape(about['description'])}</p><table>"
            bodies = about.get("requestBody", {}).get("content", {}).values()
            for name, field in (pair for body in bodies for pair in body["schema"]["properties"].items()):
                facts = {key: value for key, value in field.items() if key != "description"}
                cells = f"<b>{name}</b>", html.escape(field["description"]), html.escape(json.dumps(facts))
                text += f"<tr><td>{'<td>'.join(cells)}</tr>"
            text += "</table>"
    return HTMLResponse(text)


@router.get("/healthz")
def health(request: Request) -> dict[str, Any]:
    """Whether the workers are there, and how much waits."""
    queue = request.app.state.queue
    if not all(thread.is_alive() for thread in queue.threads):
        raise HTTPException(503, "a worker has ended")
    states = [job.state for job in list(queue.jobs.values())]
    counts = {name: states.count(name) for name in ("queued", "running")}
    return {"status": "ok", "version": __version__, **counts}


@router.get("/v1/models")
def known_models(request: Request) -> dict[str, Any]:
    """The models by name and what they do, the networks behind them, and what requests may hold."""
    state, known = request.app.state, {"object": "model", "owned_by": "bifrost"}
    data = [{"id": name, **known, "kind": kind} for kind, name in state.models.items()]
    lines = [line.replace("**", "") for line in networks_here(state.queue, state.settings)]
    takes = {"paths": bool(state.settings.allow), "addresses": state.settings.allow_urls, "n": MOST_IMAGES}
    takes |= {"max_mb": state.settings.max_mb, "max_megapixels": state.settings.max_megapixels}
    return {"object": "list", "data": data, "networks": lines, "takes": takes}
