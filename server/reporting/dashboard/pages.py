"""The pages of the dashboard. They show; nothing here changes anything but who is logged in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from common.records.journal import Entry
from common.regions import REGIONS
from common.web.auth import Door, Session, environment
from common.web.live_updates import LIVE_FOR_S, changes
from server.reporting.dashboard import csv_tables, svg_charts
from server.reporting.live_status import Reading, Readings
from server.reporting.markdown_report import headline, markdown
from server.reporting.study_chart import draw

PER_PAGE: Final = 50
PLACES: Final = (("/", "Consortium"), ("/models", "Models"), ("/journal", "Journal"))


def application(
    readings: Readings, door: Door, *, poll_s: float = 1.0, live_for_s: float = LIVE_FOR_S
) -> Starlette:
    """Return the dashboard behind ``door``."""
    pages = environment(Path(__file__).parent / "templates")
    pages.filters |= {"moment": _moment, "megabytes": _megabytes}
    pages.globals |= {"drawing": svg_charts, "REGIONS": REGIONS}

    async def page(request: Request, name: str, here: str, **values: Any) -> Response:
        session: Session = request.scope["gliofed.session"]
        reading: Reading = values["reading"]
        text = await run_in_threadpool(
            pages.get_template(name).render,
            title=f"gliofed: {reading.consortium}",
            csrf=session.csrf,
            places=PLACES,
            here=here,
            live=True,
            shown=f"the journal until {_moment(reading.at)}",
            **values,
        )
        return HTMLResponse(text)

    async def consortium(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        return await page(request, "consortium.html", "/", reading=reading)

    async def study(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        report = _of(reading, request)
        if report is None:
            return _nothing()
        return await page(
            request,
            "study.html",
            "",
            reading=reading,
            report=report,
            headline=headline(report),
            latest=report["fairness"][-1] if report["fairness"] else None,
            scores=report["evaluations"][-1] if report["evaluations"] else None,
            kinds=tuple(csv_tables.OF_A_STUDY),
        )

    async def saved(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        report, kind = _of(reading, request), request.path_params["kind"]
        if report is None:
            return _nothing()
        name = report["study"]
        if kind == "report.png":
            body = await run_in_threadpool(_picture, report)
            return _file(body, f"{name}.png", "image/png")
        if kind == "report.md":
            return _file(markdown(report), f"{name}.md", "text/markdown; charset=utf-8")
        table = csv_tables.OF_A_STUDY.get(kind.removesuffix(".csv"))
        if table is None or not kind.endswith(".csv"):
            return _nothing()
        text = csv_tables.written(table(report))
        return _file(text, f"{name}-{kind}", "text/csv; charset=utf-8")

    async def models(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        return await page(request, "models.html", "/models", reading=reading)

    async def journal(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        wanted = {key: request.query_params.get(key, "") for key in ("event", "study", "site")}
        found = [one for one in reversed(reading.entries) if _fits(one, wanted)]
        last = max(1, -(-len(found) // PER_PAGE))
        asked = request.query_params.get("page", "1")
        number = min(last, max(1, int(asked) if asked.isdecimal() and len(asked) < 9 else 1))
        return await page(
            request,
            "journal.html",
            "/journal",
            reading=reading,
            found=found[(number - 1) * PER_PAGE : number * PER_PAGE],
            count=len(found),
            number=number,
            last=last,
            wanted=wanted,
            events=sorted({one.event for one in reading.entries}),
        )

    async def journal_csv(request: Request) -> Response:
        reading = await run_in_threadpool(readings.now)
        wanted = {key: request.query_params.get(key, "") for key in ("event", "study", "site")}
        rows = csv_tables.journal(one for one in reading.entries if _fits(one, wanted))
        return _file(csv_tables.written(rows), "journal.csv", "text/csv; charset=utf-8")

    async def events(_request: Request) -> Response:
        stream = changes(readings.mark, poll_s=poll_s, for_s=live_for_s)
        return StreamingResponse(stream, media_type="text/event-stream")

    return door.application(
        [
            Route("/", consortium),
            Route("/studies/{study}", study),
            Route("/studies/{study}/{kind}", saved),
            Route("/models", models),
            Route("/journal", journal),
            Route("/journal.csv", journal_csv),
            Route("/events", events),
        ]
    )


def _of(reading: Reading, request: Request) -> Any:
    return reading.studies.get(request.path_params["study"])


def _fits(entry: Entry, wanted: dict[str, str]) -> bool:
    if wanted["event"] and entry.event != wanted["event"]:
        return False
    return all(not wanted[key] or entry.facts.get(key) == wanted[key] for key in ("study", "site"))


def _picture(report: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.png"
        draw(report, path)
        return path.read_bytes()


def _file(body: str | bytes, name: str, media_type: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(body, media_type=media_type, headers=headers)


def _nothing() -> Response:
    return PlainTextResponse("There is nothing of that name.", status_code=404)


def _moment(time: str) -> str:
    """Return a time to the second, as people write it; all are UTC."""
    return f"{time[:10]} {time[11:19]} UTC" if time else "never"


def _megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g}"
