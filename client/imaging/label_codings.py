"""What the values of a tumour mask mean, and what nobody may guess.

Data sets give one value different meanings: 4 is enhancing tumour in BraTS 2017 to 2021 and the
cavity that surgery left in BraTS 2024. A coding is what was said: by the names of BraTS's adult
gliomas, by a dataset.json, by the hospital in a manifest or under ``[labels]`` in ``site.toml``.
Where nothing says it, 1, 2 and 3 are read as BraTS writes them since 2023, and a mask that this
does not settle is refused with the possible readings: a value that means another thing elsewhere,
or 1 alone, which may be a whole tumour. Nothing is concluded from other patients' masks.

Sources: Bakas et al. 2018 (arXiv:1811.02629); Baid et al. 2021 (arXiv:2107.02314); Kazerooni et al.
2023 and 2024 (BraTS-PEDs, arXiv:2305.17033, arXiv:2404.15009); de Verdier et al. 2024
(post-treatment glioma, arXiv:2405.18368); LaBella et al. 2024 (BraTS-MEN-RT, arXiv:2405.18383).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import CaseError
from common.regions import LABELS

Coding = Mapping[int, int]
"""From a mask's value to a label of ``common.regions.LABELS``, or to 0 for background. A plain dict
at run time: cases travel to other processes."""

BRATS_2018: Final[Coding] = {1: 1, 2: 2, 4: 3}
BRATS_2023: Final[Coding] = {1: 1, 2: 2, 3: 3}

CODINGS: Final[Mapping[str, Coding]] = {
    "brats-2018": BRATS_2018,
    "brats-2023": BRATS_2023,
    "brats-2024": {1: 1, 2: 2, 3: 3, 4: 0},
    "brats-ped-2024": {1: 3, 2: 1, 3: 1, 4: 2},
}
"""The codings that have a name. A resection cavity is background; of children's tumours what does
not enhance and what is cystic both count as NCR, so that the regions are right."""

PRESUMED: Final[Coding] = {1: 1, 2: 2, 3: 3}
"""Where nothing says what the values mean."""

PRESUMED_OLD_NAMES: Final[Coding] = {1: 1, 2: 2}
"""The same for files named as until 2021: 3 and 4 are both in use under such names."""

NONE: Final[Coding] = {}
"""For data sets whose names say that their values mean something else."""

_READINGS: Final = {
    1: (
        "necrosis in BraTS",
        "enhancing tumour in BraTS-PED since 2024",
        "the gross tumour volume in BraTS-MEN-RT",
        "the whole tumour in a mask of one value",
    ),
    2: (
        "oedema in BraTS",
        "non-enhancing tumour in BraTS-PED since 2024 and in the Decathlon",
    ),
    3: (
        "enhancing tumour in BraTS since 2023",
        "non-enhancing tumour in BraTS 2012 to 2015",
        "a cyst in BraTS-PED since 2024",
    ),
    4: (
        "enhancing tumour in BraTS 2017 to 2021",
        "a resection cavity in BraTS 2024 and UCSF's masks after surgery",
        "oedema in BraTS-PED since 2024",
    ),
}
_OTHER_TUMOURS: Final = re.compile(
    r"(?<![a-z0-9])(?:brats[-_ ]?(?:20\d\d)?[-_ ]?)?(?:peds?|men[-_ ]?rt)(?![a-z])", re.IGNORECASE
)
_ADULT_GLIOMA_2018: Final = re.compile(r"^brats(?:1[789]|20|2021)_", re.IGNORECASE)
DECLARE: Final = (
    'Say what they mean under [labels] in site.toml, for instance "." = "brats-2024", or in a '
    "manifest's column labels; client/README.md lists the codings. A mask that shows the whole "
    "tumour only cannot be used: leave it out."
)


def of_other_tumours(place: str) -> bool:
    """Say whether a path names BraTS's children (PED) or meningiomas for radiotherapy (MEN-RT)."""
    return _OTHER_TUMOURS.search(place) is not None


def by_brats_name(case: str, *, old: bool) -> tuple[Coding, bool]:
    """Return what the values of ``case``'s mask mean by its name, and whether the name settles it.

    ``old``: its files are named as until 2021 (``NAME_t1ce``), which other data sets do too.
    """
    if not old:
        return BRATS_2023, case.lower().startswith("brats")
    if _ADULT_GLIOMA_2018.match(case):
        return BRATS_2018, True
    return PRESUMED_OLD_NAMES, False


def parse(text: str) -> Coding:
    """Read the name of a coding, or ``NCR=1 ED=2 ET=4 background=5``; raise ValueError."""
    if text in CODINGS:
        return CODINGS[text]
    known = {"background": 0, **LABELS}
    result: dict[int, int] = {}
    for part in re.split(r"[\s,;]+", text.strip()):
        name, _, value = part.partition("=")
        if name not in known or not value.isascii() or not value.isdigit() or int(value) in result:
            raise ValueError(
                f"labels must be one of {', '.join(CODINGS)} or read like NCR=1 ED=2 ET=3, "
                f"not {text}"
            )
        result[int(value)] = known[name]
    return result


def decode(
    values: NDArray[np.float32], coding: Coding, path: Path, *, settled: bool
) -> NDArray[np.uint8]:
    """Return the mask in the values of LABELS; raise CaseError (``case-label``).

    ``settled``: somebody or a name said what the values mean; without it 1 alone is refused too.
    """
    labels = np.zeros(values.shape, np.uint8)
    found = [float(value) for value in np.unique(values) if value != 0]
    keys = [round(value) for value in found]
    for value, key in zip(found, keys, strict=True):
        if abs(value - key) > 1e-3:
            raise CaseError(
                f"{path} holds the value {value:g}, which is no label.",
                do="A mask may not be interpolated; export it again, or sample it to the nearest.",
                code="case-label",
            )
    open_ones = [key for key in keys if key != 0 and key not in coding]
    if not settled and set(keys) == {1}:
        open_ones = [1]
    if open_ones:
        raise _unsaid(path, keys, open_ones, coding)
    for value, key in zip(found, keys, strict=True):
        labels[values == value] = coding.get(key, 0)
    return labels


def _unsaid(path: Path, keys: Sequence[int], open_ones: Sequence[int], coding: Coding) -> CaseError:
    if unknown := [key for key in open_ones if key not in _READINGS]:
        known = ", ".join(map(str, sorted(coding))) or "none"
        return CaseError(
            f"{path} holds the value {unknown[0]}, which no known data set has; here 0, {known} "
            "have a meaning.",
            do="Correct the mask. If the value has a meaning: " + DECLARE,
            code="case-label",
        )
    readings = "; ".join(f"{key} is {', or '.join(_READINGS[key])}" for key in open_ones)
    return CaseError(
        f"{path} holds the {'value' if len(keys) == 1 else 'values'} "
        f"{', '.join(map(str, keys))}, and nothing says which data set's coding it is: {readings}.",
        do=DECLARE,
        code="case-label",
    )
