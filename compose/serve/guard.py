"""Who may ask: the account of `--auth`, no other web page, and with no more than the largest request."""

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SAFE = ("GET", "HEAD", "OPTIONS")
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


class Guard:
    """ASGI middleware before every route, page, documentation and socket. auth: USER:PASSWORD or None."""

    def __init__(self, app: ASGIApp, auth: str | None, max_mb: int) -> None:
        self.app, self.auth, self.max_mb = app, auth, max_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        # Decided as by Go's CrossOriginProtection; programs other than browsers send neither header.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        other_page = site not in ("same-origin", "none", None)
        if site is None and origin is not None:
            other_page = urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if self.auth is not None and not self.is_account(headers.get("authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="bifrost", charset="UTF-8"'}
            refusal = error_json(401, "user and password are needed", challenge)
        elif other_page and scope.get("method") not in SAFE:
            refusal = error_json(403, "requests of other web pages are refused")
        elif int(f"0{headers.get('content-length', '')}") > self.max_mb * 1_000_000:
            refusal = error_json(413, f"the request is larger than {self.max_mb} MB (--max-mb)")
        else:
            return await self.app(scope, receive, send)
        return await refusal(scope, receive, send)

    def is_account(self, given: str) -> bool:
        """Whether an Authorization header, Basic or Bearer, holds `auth`; any text takes equal time."""
        kind, _, value = given.partition(" ")
        try:
            basic = kind.lower() == "basic"
            said = base64.b64decode(value, validate=True) if basic else value.encode("latin-1")
        except (binascii.Error, ValueError):
            said = b""
        return hmac.compare_digest(said, str(self.auth).encode()) and kind.lower() in ("basic", "bearer")


def error_json(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the form of OpenAI's API."""
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)
