"""What the coordinator's pictures have in common: how one is begun, its colours and marks.

Colours are those of Okabe and Ito, which people who see few colours can tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from common.errors import StateError
from common.records.atomic_files import replacing

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS: Final = ("o", "s", "^", "D", "v", "P")


def new_figure(path: Path, *, size: tuple[float, float]) -> Any:
    """Return an empty figure of ``size`` inches, to be saved at ``path``.

    Raises StateError if ``path`` is no PNG or matplotlib is missing.
    """
    if path.suffix.lower() != ".png":
        raise StateError(f"{path} is no name of a picture.", do="Give it the ending .png.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise StateError(
            "The curves need matplotlib, which is not installed.",
            do="Install gliofed[server], or read the report without --out.",
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write the figure whole or not at all, readable by its owner only: it names hospitals."""
    with replacing(path, mode=0o600) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
