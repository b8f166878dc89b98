"""Who may ask: nobody but the browser that opened the one link, by the one address.

The link holds a token that opens once; from then on a cookie does, which no script reads and no
other site sends. A request by another name than the loopback's is refused: a page elsewhere could
have that name point here. What changes something must come from the page itself.
"""

from __future__ import annotations

import hmac
import secrets
from threading import Lock
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "font-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_DAY_S: Final = 12 * 3600
# A page of our own goes on to the review: a cookie that is strict is not sent behind a redirect.
_OPENED: Final = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    "<title>Opening the review</title>"
)
_CLOSED: Final = (
    "This page opens with the link that `gliofed-clinic review` printed, once, in one browser. "
    "Stop the command and start it again for a new link; what was drawn is kept."
)


class Gate:
    """The ASGI application ``app`` behind one link at ``127.0.0.1:port``."""

    def __init__(self, app: ASGIApp, *, port: int) -> None:
        self._app = app
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie = f"gliofed_review_{port}"
        self._token: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        self._lock = Lock()
        self.link = f"http://127.0.0.1:{port}/open?token={self._token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._answer(scope)
        await (self._app if answer is None else answer)(scope, receive, guarded)

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer of the gate itself, None to let the request through."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return PlainTextResponse("Ask by the address that was printed.", 421)
        if scope["path"] == "/open" and scope["method"] == "GET":
            return self._open(scope, headers)
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not hmac.compare_digest(cookie.encode(), self._session.encode()):
            return PlainTextResponse(_CLOSED, 403)
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return PlainTextResponse("This request did not come from the page.", 403)
        return None

    def _open(self, scope: Scope, headers: Headers) -> Response:
        if "purpose" in headers or "sec-purpose" in headers:  # a browser that looks ahead
            return PlainTextResponse("Open the link itself.", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        with self._lock:
            fits = self._token is not None and hmac.compare_digest(
                given.encode(), self._token.encode()
            )
            if fits:
                self._token = None
        if not fits:
            return PlainTextResponse(_CLOSED, 403)
        answer = HTMLResponse(_OPENED)
        answer.set_cookie(
            self._cookie, self._session, max_age=_DAY_S, httponly=True, samesite="strict"
        )
        return answer
