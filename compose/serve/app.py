"""The server put together: queue, API, page; and its start."""

import contextlib
import logging
import re
import socket
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import uvicorn
from fastapi import FastAPI
from gradio import mount_gradio_app
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cldm.config import load_compositor_config
from compose.models import JobNetworks, compositor_folder
from compose.serve.agents import agents_at
from compose.serve.guard import LOCAL_HOSTS, Guard, error_json
from compose.serve.jobs import Job, JobQueue, QueueFull
from compose.serve.page import RESULT, Site
from compose.serve.page_jobs import THEME, build_page
from compose.serve.rest import error_answer, router
from compose.serve.settings import COMPOSE_IMAGES, ServeSettings, anywhere, filled
from compose.serve.uploads import without_paths
from inpainting.dream import DreamSettings
from inpainting.models.text_to_image.load import read_inpainter_config
from inpainting.painting import painter_folder
from ldm import __version__
from ldm.device import pick_device
from ldm.doctor import lacks_mcp
from ldm.locks import one_writer

log = logging.getLogger(__name__)

FLAG = re.compile(r"--([a-z][a-z0-9-]*)")
NAMES = {setting: field for field, setting in COMPOSE_IMAGES.items()} | {"num_samples": "n", "masks": "mask"}
# What Gradio would do with files: its answers name folders of the server, and the page has other ways.
UNUSED = ("upload", "process_recording", "file={at:path}", "file/{at:path}", "proxy={at:path}")
GRACE = 5  # seconds for open answers when the server is stopped; chosen
# Bytes that a device's composites leave to other seeds of their places; chosen: the control residuals of a
# guided image of 512 px and 20 steps take 537 MB in bf16 with --speed exact, 107 with balanced, 81 with fast.
KEPT = 640 * 2**20


def error_for_clients(text: str, job: Job) -> str:
    """An error in the words of a request: its fields, flags of the server as they are, none of its paths."""
    own = {field.name for field in fields(ServeSettings)}

    def named(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return found[0] if name in own else NAMES.get(name, name)

    return without_paths(FLAG.sub(named, text), job.names)


def make_queue(settings: ServeSettings) -> JobQueue:
    """The queue with a worker for each device; ValueError for a device that is not there."""
    workers = [JobNetworks(str(pick_device(name)), keeps=KEPT) for name in settings.devices]
    return JobQueue(
        settings.out.resolve(), workers, waiting=settings.waiting, keep_s=60 * settings.keep_minutes,
        per_minute=settings.rate_limit, clean=error_for_clients)  # fmt: skip


def make_api(settings: ServeSettings, queue: JobQueue, url: str = "") -> FastAPI:
    """The API behind its guard. url: opened in the browser when the server is up."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if url:
            webbrowser.open(url)
        async with around():
            yield

    app = FastAPI(  # whose own page of documentation takes scripts from elsewhere; `rest.described` is ours
        title="Bifrost",
        version=__version__,
        summary="Put objects into images, and paint regions of them",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers={QueueFull: error_answer, HTTPException: error_answer},  # type: ignore[dict-item]
    )
    composites = anywhere(settings.compose_config)
    paintings = filled(DreamSettings, settings.paint_config, {"image": "-"})
    app.state.settings, app.state.queue = settings, queue
    app.state.models = {  # kind of work -> the name of the model that does it
        "compose": load_compositor_config(compositor_folder(composites.model)).name,
        "paint": read_inpainter_config(painter_folder(paintings)).name,
    }
    app.include_router(router)
    agents, around = agents_at()
    app.router.add_route("/mcp", agents)  # type: ignore[arg-type]  # an ASGI application takes all methods
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_mb * 1_000_000)
    app.add_middleware(Guard, auth=settings.auth, max_mb=settings.max_mb)
    if settings.is_local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS, www_redirect=False)
    return app


def make_app(settings: ServeSettings, queue: JobQueue, url: str = "") -> FastAPI:
    """The API, and the page on every other address, behind the same guard."""
    app, site = make_api(settings, queue, url), Site(queue, settings)
    app.add_api_route("/page/files", site.receive, methods=["POST"], include_in_schema=False)
    for route in UNUSED:  # before those of the page
        app.router.add_route(f"/gradio_api/{route}", error_json(404, "Not Found"))  # type: ignore[arg-type]
    look: dict[str, Any] = {"footer_links": [], "run_history": False, "theme": THEME, "css": RESULT}
    return mount_gradio_app(app, build_page(site), "/", root_path=settings.root_path, **look)


def serve(settings: ServeSettings) -> None:
    """Serve the page and the HTTP API until Ctrl-C; results outlive the server for the stated time."""
    settings.out.mkdir(mode=0o700, parents=True, exist_ok=True)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.create_server((settings.host, settings.port), family=family)
    with one_writer(settings.out), listening as listener:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if not settings.is_local and settings.auth is None:
            text = "everybody who reaches %s can use this server; --auth USER:PASSWORD asks for more"
            log.warning(text, url)
        queue = make_queue(settings)
        app = make_app(settings, queue, url if settings.open else "")
        log.info("page:    %s\nAPI:     %s/docs\nagents:  %s", url, url, lacks_mcp() or f"{url}/mcp")
        log.info("results: %s, for %g minutes", settings.out, settings.keep_minutes)
        proxy: dict[str, Any] = {"root_path": settings.root_path, "server_header": False}
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, **proxy)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            queue.close()
