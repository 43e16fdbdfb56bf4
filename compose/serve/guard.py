"""Who may ask: the account of `--auth`, no other web page, and under no foreign name of a local address."""

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SAFE = ("GET", "HEAD", "OPTIONS")
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


class Guard:
    """ASGI middleware before every route, page, documentation and socket. auth: USER:PASSWORD or None."""

    def __init__(self, app: ASGIApp, auth: str | None) -> None:
        self.app, self.auth = app, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if self.auth is not None and not is_account(headers.get("authorization", ""), self.auth):
            challenge = {"WWW-Authenticate": 'Basic realm="bifrost", charset="UTF-8"'}
            refusal = PlainTextResponse("user and password are needed", 401, challenge)
        elif scope.get("method") not in SAFE and is_cross_origin(headers):
            refusal = PlainTextResponse("requests of other web pages are refused", 403)
        else:
            return await self.app(scope, receive, send)
        if scope["type"] == "http":
            return await refusal(scope, receive, send)
        return await send({"type": "websocket.close", "code": 1008})


def is_account(given: str, auth: str) -> bool:
    """Whether an Authorization header, Basic or Bearer, holds USER:PASSWORD; any text takes equal time."""
    kind, _, value = given.partition(" ")
    try:
        said = base64.b64decode(value, validate=True) if kind.lower() == "basic" else value.encode()
    except (binascii.Error, ValueError):
        said = b""
    return hmac.compare_digest(said, auth.encode()) and kind.lower() in ("basic", "bearer")


def is_cross_origin(headers: Headers) -> bool:
    """Whether a browser sends this for another site's page; decided as by Go's `CrossOriginProtection`.

    Programs other than browsers send neither header.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
