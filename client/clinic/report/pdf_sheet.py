"""The report as a PDF, A4, by reportlab: what the page shows, for paper and archives.

The fonts are matplotlib's, embedded, so that names in any of their scripts are shown. One report
always gives the same bytes.
"""

from __future__ import annotations

import io
from functools import cache, partial
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape  # it parses nothing # nosec B406

import matplotlib as mpl
from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import CondPageBreak, Image, Paragraph, SimpleDocTemplate, Spacer
from reportlab.platypus import Table as Grid

from client.clinic.report.content import Block, Picture, Report, Table
from common.foreign_text import printable

_MARGIN: Final = 14 * mm
_WIDTH: Final[float] = A4[0] - 2 * _MARGIN
_PADDING: Final = 6
"""What reportlab leaves free within each margin."""

_BANNER_MM: Final = 7
_TO_STRIKE_OUT: Final = "Accepted / corrected / rejected (strike out what does not hold)"
_INK: Final = HexColor("#1b1f24")
_SOFT: Final = HexColor("#4a525c")
_LINE: Final = HexColor("#c5ccd4")
_GRAVE: Final = HexColor("#8c1d18")

rl_config.useA85 = 0
"""Images as bytes: as text they take a second more to write, and a quarter more room."""


def sheet(report: Report) -> bytes:
    """Return the PDF of a report."""
    _fonts()
    file = io.BytesIO()
    document = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=_MARGIN - _PADDING,
        rightMargin=_MARGIN - _PADDING,
        topMargin=_MARGIN + (_BANNER_MM + 2) * mm,
        bottomMargin=_MARGIN + 6 * mm,
        title=report.title,
        author="gliofed",
        invariant=1,
    )
    flow: list[Any] = [_words(report.title, size=15, bold=True), Spacer(1, 2 * mm)]
    flow += [_words(fact, colour=_SOFT) for fact in report.facts]
    for section in report.sections:
        first = section.blocks[0] if section.blocks else None
        flow += [
            CondPageBreak(_height(first) + 14 * mm),
            Spacer(1, 3 * mm),
            _words(section.title, size=10.5, bold=True),
        ]
        for block in section.blocks:
            flow += [Spacer(1, 1 * mm), *_block(block)]
    flow += [
        CondPageBreak(28 * mm),
        Spacer(1, 4 * mm),
        _words("Review", size=10.5, bold=True),
        *map(_words, report.review or (_TO_STRIKE_OUT,)),
        Spacer(1, 8 * mm),
        _reviewer(("Signature",) if report.review else ("Name", "Date", "Signature")),
    ]
    frame = partial(_frame, banner=report.banner)
    document.build(flow, onFirstPage=frame, onLaterPages=frame)
    return file.getvalue()


def _height(block: Block | None) -> float:
    """Return what must fit below a section's title, so that it stands over what it is of."""
    if not isinstance(block, Picture):
        return float(11 * mm)
    width, height = map(float, ImageReader(io.BytesIO(block.png)).getSize())
    return _WIDTH * height / width


@cache
def _fonts() -> None:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    for name, file in (("Sans", "DejaVuSans.ttf"), ("Sans-Bold", "DejaVuSans-Bold.ttf")):
        pdfmetrics.registerFont(TTFont(f"gliofed-{name}", str(folder / file)))


def _frame(canvas: Any, document: Any, *, banner: str) -> None:
    """Draw what every page has: the banner and the page's number."""
    canvas.saveState()
    top = A4[1] - _MARGIN
    canvas.setFillColor(_GRAVE)
    canvas.rect(_MARGIN, top - _BANNER_MM * mm, _WIDTH, _BANNER_MM * mm, stroke=0, fill=1)
    canvas.setFillColor(HexColor("#ffffff"))
    canvas.setFont("gliofed-Sans-Bold", 9)
    canvas.drawString(_MARGIN + 2 * mm, top - _BANNER_MM * mm + 2.3 * mm, banner)
    canvas.setFillColor(_SOFT)
    canvas.setFont("gliofed-Sans", 7.5)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN, f"Page {document.page}")
    canvas.restoreState()


def _words(
    text: str, *, size: float = 8, bold: bool = False, colour: Any = _INK, **more: Any
) -> Any:
    style = ParagraphStyle(
        "words",
        fontName="gliofed-Sans-Bold" if bold else "gliofed-Sans",
        fontSize=size,
        leading=size * 1.35,
        textColor=colour,
        splitLongWords=True,
        **more,
    )
    return Paragraph(escape(printable(text, lines=True)), style)


def _block(block: Block) -> list[Any]:
    if isinstance(block, Picture):
        return [Image(io.BytesIO(block.png), _WIDTH, _height(block))]
    if isinstance(block, Table):
        return [_grid(block)]
    if block.grave:
        rows = [[_words(line)] for line in block.lines]
        style = [("LINEBEFORE", (0, 0), (0, -1), 2, _GRAVE), *_tight(left=6)]
        return [Grid(rows, colWidths=[_WIDTH], style=style)] if rows else []
    return [_words(line, colour=_SOFT, spaceAfter=2) for line in block.lines]


def _grid(table: Table) -> Any:
    rows = [
        [
            _words(
                cell,
                bold=place == 0,
                colour=_SOFT if place == 0 else _INK,
                **({"alignment": TA_RIGHT} if column in table.numbers else {}),
            )
            for column, cell in enumerate(row)
        ]
        for place, row in enumerate((table.head, *table.rows))
    ]
    style = [("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE), *_tight(left=2)]
    return Grid(rows, colWidths=_widths(table), style=style, hAlign="LEFT", repeatRows=1)


def _widths(table: Table) -> list[float]:
    """Return each column's width: what its longest cell needs, all of them at most the page's."""
    wanted = [
        max(pdfmetrics.stringWidth(cell, "gliofed-Sans-Bold", 8) for cell in column) + 12
        for column in zip(table.head, *table.rows, strict=True)
    ]
    shrunk = min(1.0, _WIDTH / sum(wanted))
    return [one * shrunk for one in wanted]


def _tight(*, left: float) -> list[Any]:
    everywhere = ((0, 0), (-1, -1))
    return [
        ("LEFTPADDING", *everywhere, left),
        ("RIGHTPADDING", *everywhere, 6),
        ("TOPPADDING", *everywhere, 1.5),
        ("BOTTOMPADDING", *everywhere, 1.5),
        ("VALIGN", *everywhere, "TOP"),
    ]


def _reviewer(lines: tuple[str, ...]) -> Any:
    """Return lines to be written on, three to a row."""
    gap = 6 * mm
    width = (_WIDTH - 2 * gap) / 3
    cells = [cell for line in lines for cell in (_words(line), "")][:-1]
    widths = [gap if number % 2 else width for number in range(len(cells))]
    style = [("LINEABOVE", (one, 0), (one, 0), 0.8, _INK) for one in range(0, len(cells), 2)]
    return Grid([cells], colWidths=widths, style=style, hAlign="LEFT")
