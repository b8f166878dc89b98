"""The site's one page. It shows, and it has two buttons: stop, and resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from client.page.site_status import Readings
from client.site import stop as site_stop
from client.site.folder import Site
from common.web.auth import Door, Session, environment, fields
from common.web.live_updates import LIVE_FOR_S, changes

BY: Final = "the site's page"


def application(
    folder: Path,
    readings: Readings,
    door: Door,
    *,
    poll_s: float = 1.0,
    live_for_s: float = LIVE_FOR_S,
) -> Starlette:
    """Return the page of the site in ``folder`` behind ``door``."""
    pages = environment(Path(__file__).parent / "templates")
    pages.filters |= {"moment": _moment, "size": _size, "share": _share}

    async def page(request: Request) -> Response:
        session: Session = request.scope["gliofed.session"]
        reading = await run_in_threadpool(readings.now)
        text = await run_in_threadpool(
            pages.get_template("site.html").render,
            title=f"gliofed: {reading.site}",
            csrf=session.csrf,
            places=(("/", "This site"),),
            here="/",
            live=True,
            shown=f"what was the case at {_moment(reading.at)}",
            reading=reading,
            minutes=None if reading.doing is None else _minutes(reading.doing.since_s),
        )
        return HTMLResponse(text)

    async def stop(request: Request) -> Response:
        form = await fields(request)
        if form.get("confirm") != "yes":
            return PlainTextResponse("Nothing was stopped: it was not confirmed.", 400)

        def do() -> None:
            site_stop.stop(Site.open(folder), by=BY, reason=form.get("reason", ""))

        await run_in_threadpool(do)
        return RedirectResponse("/", status_code=303)

    async def resume(_request: Request) -> Response:
        await run_in_threadpool(lambda: site_stop.resume(Site.open(folder), by=BY))
        return RedirectResponse("/", status_code=303)

    async def events(_request: Request) -> Response:
        stream = changes(readings.mark, poll_s=poll_s, for_s=live_for_s)
        return StreamingResponse(stream, media_type="text/event-stream")

    return door.application(
        [
            Route("/", page),
            Route("/stop", stop, methods=["POST"]),
            Route("/resume", resume, methods=["POST"]),
            Route("/events", events),
        ]
    )


def _minutes(since_s: float) -> int:
    return max(0, round((time.time() - since_s) / 60))


def _moment(said: str) -> str:
    """Return a time to the second, as people write it; all are UTC."""
    return f"{said[:10]} {said[11:19]} UTC" if said else "never"


def _size(count: Any) -> str:
    """Return a number of bytes as people write it."""
    if count is None:
        return "not known"
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _share(part: float | None, whole: float | None) -> float:
    return 0.0 if not whole or part is None else max(0.0, min(1.0, part / whole))
