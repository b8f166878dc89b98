"""The report as one HTML file: it loads nothing, runs no script and shows text as text."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import jinja2

from client.clinic.report.content import Report
from common.foreign_text import on_page

_TEMPLATE: Final = Path(__file__).with_name("page.html")


def page(report: Report) -> bytes:
    """Return the HTML of a report, UTF-8."""
    environment = jinja2.Environment(
        finalize=on_page,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report).encode()
