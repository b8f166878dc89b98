"""The review page's application: one page, its pictures, a draft to keep, a decision to make.

What changes something comes with the session's secret in a header (``common.web``); what it
carries is read to its bound and no further.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from client.review.session import CONFLICT, Desk
from common.errors import CaseError, GliofedError, StateError
from common.web.auth import Door, Session, environment, static

HERE: Final = Path(__file__).parent
_MOST_DECISION_BYTES: Final = 64 * 1024
_NIFTI: Final = "application/octet-stream"


def application(desk: Desk, door: Door, *, reviewer: str = "") -> Starlette:
    """Return the page over ``desk`` behind ``door``; ``reviewer`` is whose name it begins with."""
    page = environment(HERE / "templates").get_template("review.html")

    async def home(request: Request) -> Response:
        session: Session = request.scope["gliofed.session"]
        state = await run_in_threadpool(desk.state)
        return HTMLResponse(
            page.render(**state, csrf=session.csrf, reviewer=reviewer, said=state["review"])
        )

    async def state(_request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.state))

    async def image(request: Request) -> Response:
        body = await run_in_threadpool(desk.image, request.path_params["name"])
        if body is None:
            return PlainTextResponse("There is no such sequence.", 404)
        return Response(body, media_type=_NIFTI)

    async def mask(_request: Request) -> Response:
        return Response(await run_in_threadpool(desk.mask), media_type=_NIFTI)

    async def keep(request: Request) -> Response:
        body = await _read(request, desk.most_bytes)
        if body is None:
            return _too_long()
        known = request.headers.get("if-match", "").strip('"')
        try:
            sha256 = await run_in_threadpool(desk.keep, body, known=known)
        except GliofedError as error:
            return _refusal(error)
        return JSONResponse({"sha256": sha256})

    async def decide(request: Request) -> Response:
        body = await _read(request, _MOST_DECISION_BYTES)
        if body is None:
            return _too_long()
        try:
            given = json.loads(body)
            words = {name: str(given[name]) for name in ("decision", "reviewer", "comment", "seen")}
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "This is no decision.", "do": ""}, 422)
        try:
            done = await run_in_threadpool(desk.decide, words.pop("decision"), **words)
        except GliofedError as error:
            return _refusal(error)
        return JSONResponse(done)

    return door.application(
        [
            Route("/", home),
            Route("/state", state),
            Route("/images/{name}.nii", image),
            Route("/mask.nii", mask),
            Route("/draft", keep, methods=["PUT"]),
            Route("/decision", decide, methods=["POST"]),
            Mount("/review", static(HERE / "static")),
        ]
    )


async def _read(request: Request, most: int) -> bytes | None:
    """Return what was sent, None as soon as it is longer than ``most`` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _too_long() -> Response:
    said = {"error": "This is longer than it can be and was not taken.", "do": "Load the page."}
    return JSONResponse(said, 413, headers={"connection": "close"})


def _refusal(error: GliofedError) -> Response:
    """Say what went wrong, as a command would."""
    status = 409 if error.code == CONFLICT else 422 if isinstance(error, CaseError) else 503
    if isinstance(error, StateError) and error.code == "review-decision":
        status = 422
    return JSONResponse({"error": error.message, "do": error.do, "code": error.code}, status)
