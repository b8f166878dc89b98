"""One case looked at: prepared, measured and drawn, or why it cannot be used.

Another process may do it (``client.imaging.parallel_cases``): what is imported here is kept small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.cohort.quality.case_measurements import CaseMeasures, measure
from client.cohort.quality.thumbnails import thumbnail
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from client.imaging.plausibility import warnings_of
from client.imaging.prepared_cache import PreparedCache
from common.errors import CaseError
from common.study.protocol import PreprocessingOptions


@dataclass(frozen=True)
class Checked:
    """One case: its measures and picture, or why it cannot be used.

    ``notes`` are what choosing the series and preparing them left to say; they refuse nothing.
    """

    case: Case
    measures: CaseMeasures | None
    picture: bytes
    notes: tuple[str, ...] = ()
    reason: str = ""
    code: str = ""


def check_case(
    case: Case,
    *,
    cache: Path,
    options: PreprocessingOptions,
    limit_bytes: int = 0,
    drawn: bool = True,
) -> Checked:
    """Prepare one case and measure it, and draw it if ``drawn``; what is wrong is a result too.

    ``limit_bytes`` is what the cache may take; 0 sets no limit.
    """
    try:
        prepared = PreparedCache(cache, options, limit_bytes=limit_bytes).get(case)
        volumes = {name: read_image(image) for name, image in case.images.items()}
    except CaseError as error:
        return Checked(case, None, b"", reason=str(error), code=error.code)
    measures = measure(case.name, case.patient, volumes, prepared)
    notes = (*case.notes, *warnings_of(prepared.history))
    return Checked(case, measures, thumbnail(prepared) if drawn else b"", notes)
