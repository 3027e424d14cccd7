"""Who may talk to the server: programs of this machine that know the token, and pages that it served itself."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine. A page elsewhere whose name is made to point here (DNS rebinding) has another."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def refusal(method: str, path: str, headers: Mapping[str, str], token: str) -> tuple[int, str] | None:
    """Status and words for requests that are not answered.

    Args:
        method, path: of the request; the first part of the path must be the token.
        headers: with names in lower case.
        token: the server's.
    """
    # This machine, by its name
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return 403, "This server answers on this machine only."

    # The token, compared in constant time
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    if not hmac.compare_digest(first.encode(), token.encode()):
        return 404, "There is nothing here. Use the whole address that the terminal shows."

    # No other page; browsers say which one asks
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "Other pages may not use this server."
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "Other pages may not use this server."
    if method not in ("GET", "HEAD") and origin is None and "sec-fetch-site" in headers:
        return 403, "Other pages may not use this server."
    return None


class Guard:
    """Refuses requests (`refusal`), takes the token off the path, and adds headers for the browser's own guard."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = refusal(scope["method"], scope["path"], dict(Headers(scope=scope)), self.token)
        if refused is not None:
            status, words = refused
            await PlainTextResponse(words, status)(scope, receive, send_guarded)
            return
        path = scope["path"][len(self.token) + 1 :] or "/"
        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send_guarded)
