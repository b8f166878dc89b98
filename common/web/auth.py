"""The door to a page of ours: one-time links, sessions, and what no browser may do with the page.

``gliofed-server serve --dashboard`` and ``gliofed-clinic review`` print a link with a token. The
token opens the door once, within an hour, and is then worth nothing: its file is removed before the
session begins, so that two who come with it at once cannot both get in. A session is a random
cookie that scripts cannot read; it lives in memory, so that it ends with the process.

Every answer carries a content security policy under which nothing but our own files is loaded, no
inline script or style runs, and no form goes elsewhere. Requests under a foreign host name are
refused (DNS rebinding), and so are those that change something unless they come from our own page
and carry the session's own secret (CSRF): a form in its field ``csrf``, a script in the header
``x-csrf``, whose body is then the page's to read and to bound.

Out of scope: what the pages show (``server.reporting.dashboard``, ``client.review``); TLS, which is
the server's that runs this.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import mimetypes
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import jinja2
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import StateError
from common.foreign_text import on_page
from common.records.atomic_files import write_secret
from common.web.http_server import vouch

HERE: Final = Path(__file__).parent
COOKIE: Final = "gliofed_session"
TOKEN_LIFE_S: Final = 3600.0
SESSION_LIFE_S: Final = 12 * 3600.0
_MOST_FORM_BYTES: Final = 64 * 1024
_MOST_SESSIONS: Final = 256
_SAFE: Final = frozenset({"GET", "HEAD"})
_STALE: Final = "This form is not of this session: load the page again."
_KINDS: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

CSRF_HEADER: Final = "x-csrf"

HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Session:
    """Somebody who came in; ``csrf`` is the secret that forms of theirs carry."""

    csrf: str
    until_s: float


def issue(folder: Path, *, now: Callable[[], float] = time.time) -> str:
    """Make a one-time token and return it; ``folder`` keeps its hash and when it expires."""
    token = secrets.token_urlsafe(32)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _sweep(folder, now())
    write_secret(folder / _hash(token), repr(now() + TOKEN_LIFE_S).encode())
    return token


def static(folder: Path) -> StaticFiles:
    """Return what serves our own files in ``folder``, each as what it is.

    Python asks Windows' registry, where any program may have written what a script is; a browser
    runs none that comes as text.
    """
    for suffix, kind in _KINDS.items():
        mimetypes.add_type(kind, suffix)
    return StaticFiles(directory=folder)


def link(address: str, token: str) -> str:
    """Return the address that a person opens."""
    return f"{address}/login?token={token}"


class Door:
    """Lets in who has a token that is kept in ``folder``; ``hosts`` are the names that it goes by.

    ``secure`` says that the pages are served by TLS: the cookie then travels in nothing else. Two
    pages of one machine need two names of ``cookie``, which knows no ports. With ``pictures`` a
    script of ours may show what it holds itself (``data:`` and ``blob:``), as a viewer does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        title: str,
        hosts: Sequence[str] = (),
        secure: bool = False,
        renew: str = "",
        cookie: str = COOKIE,
        pictures: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.policy = _policy("data: blob:" if pictures else "")
        self._cookie = cookie
        self._folder = folder
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}
        self._title = title
        self._secure = secure
        self._renew = renew
        self._now = now
        self._sessions: dict[str, Session] = {}
        self._pages = environment()

    def application(self, routes: Sequence[BaseRoute]) -> Starlette:
        """Return the pages in ``routes`` behind this door, with the ways in and out."""
        return Starlette(
            routes=[
                Route("/login", self._login, methods=["GET", "POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Mount("/static", static(HERE / "static")),
                *routes,
            ],
            middleware=[Middleware(_Guard, door=self)],
            exception_handlers={StateError: _state_error},
        )

    def session(self, cookies: Mapping[str, str]) -> Session | None:
        """Return the session that a browser's cookie names, if it goes on."""
        known = self._sessions.get(_hash(cookies.get(self._cookie, "")))
        return known if known is not None and known.until_s > self._now() else None

    def admits_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return name.strip("[]").lower() in self._hosts

    async def _login(self, request: Request) -> Response:
        if request.method == "GET":
            token = request.query_params.get("token", "")
            return self._login_page(token, problem="")
        form = await fields(request)
        if not self._spend(form.get("token", "").strip()):
            return self._login_page("", problem="This link is used, expired or incomplete.")
        name, now = secrets.token_urlsafe(32), self._now()
        self._sessions = {k: s for k, s in self._sessions.items() if s.until_s > now}
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_hash(name)] = Session(secrets.token_urlsafe(32), now + SESSION_LIFE_S)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            self._cookie,
            name,
            max_age=round(SESSION_LIFE_S),
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    async def _logout(self, request: Request) -> Response:
        self._sessions.pop(_hash(request.cookies.get(self._cookie, "")), None)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(self._cookie, secure=self._secure, httponly=True, samesite="strict")
        return answer

    def _spend(self, token: str) -> bool:
        """Return whether ``token`` is good, and make it worthless."""
        path = self._folder / _hash(token)
        try:
            until = float(path.read_text(encoding="utf-8"))
            path.unlink()  # who removes it has it: a second one fails here
        except (OSError, ValueError):
            return False
        return until > self._now()

    def _login_page(self, token: str, *, problem: str) -> Response:
        page = self._pages.get_template("login.html")
        text = page.render(title=self._title, token=token, problem=problem, renew=self._renew)
        return HTMLResponse(text, status_code=403 if problem else 200)


def environment(*folders: Path) -> jinja2.Environment:
    """Return templates of ``folders`` and of the door, which show text as text."""
    return jinja2.Environment(
        finalize=on_page,
        loader=jinja2.FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


async def fields(request: Request) -> dict[str, str]:
    """Return the fields of a posted form, once it is read; {} for anything that is none."""
    known: Mapping[str, str] | None = request.scope.get("gliofed.fields")
    return dict(known or {})


class _Guard:
    """What stands between a request and the pages."""

    def __init__(self, app: ASGIApp, *, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = self._door.policy
            await send(message)

        refusal = await self._refusal(scope, receive)
        await (refusal or self._app)(scope, receive, headed)

    async def _refusal(self, scope: MutableMapping[str, Any], receive: Receive) -> Response | None:
        """Return why the request goes no further, or None."""
        request = Request(scope, receive)
        headers, path = request.headers, request.url.path
        if not self._door.admits_host(headers.get("host", "")):
            return _plain("This page does not go by that name.", 421)
        session = self._door.session(request.cookies)
        scope["gliofed.session"] = session
        if session is not None and not vouch(scope, session.csrf):
            return _plain("This browser has too many connections: close other pages of it.", 503)
        if scope["method"] in _SAFE:
            open_to_all = path == "/login" or path.startswith("/static/")
            if session is None and not open_to_all:
                wants_page = "text/html" in headers.get("accept", "")
                return RedirectResponse("/login", 303) if wants_page else _plain("Log in.", 401)
            return None
        if not _from_here(headers, scheme=request.url.scheme):
            return _plain("This came from another page and was not done.", 403)
        if CSRF_HEADER in headers and path != "/login":
            if session is None:
                return _plain("Log in.", 401)
            return None if _same(headers[CSRF_HEADER], session.csrf) else _plain(_STALE, 403)
        form = await _read_form(request)
        if form is None:
            return _plain("This form is too large or not readable.", 413)
        scope["gliofed.fields"] = form
        if path == "/login":
            return None
        if session is None:
            return _plain("Log in.", 401)
        return None if _same(form.get("csrf", ""), session.csrf) else _plain(_STALE, 403)


def _policy(more: str) -> str:
    """Return the content security policy; ``more`` are sources of pictures beside our own files."""
    own = f"'self' {more}".strip()
    fonts = "font-src data:; " if more else ""
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {own}; {fonts}"
        f"connect-src {own}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _from_here(headers: Headers, *, scheme: str) -> bool:
    """Return whether a browser says that a request comes from our own page, or says nothing."""
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin")
    own = f"{scheme}://{headers.get('host', '')}"
    return site in {"same-origin", "none"} and origin in {None, own}


async def _read_form(request: Request) -> dict[str, str] | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            return None
    try:
        text = body.decode()
        return {name: said[-1] for name, said in parse_qs(text, max_num_fields=50).items()}
    except ValueError:
        return None


def _state_error(_request: Request, error: Exception) -> Response:
    """Say what went wrong, as a command would."""
    return _plain(str(error), 503)


def _plain(text: str, status: int) -> Response:
    return PlainTextResponse(text, status_code=status)


def _sweep(folder: Path, now: float) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if float(path.read_text(encoding="utf-8")) < now:
                path.unlink()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
