"""File layouts that are known by the names of files: BraTS of every year, and BIDS.

Pure: paths in, findings out; no file is opened. Sources: the BraTS data pages of the years 2018
to 2024, and BIDS 1.10, "Magnetic Resonance Imaging" and "Imaging data types of derivatives".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from client.cohort.case_assembly import LABEL, Finding
from client.imaging.case import Image
from client.imaging.label_codings import PRESUMED, by_brats_name

KNOWN: Final = (
    "BraTS 2018 to 2021: NAME_t1.nii.gz, NAME_t1ce.nii.gz, NAME_t2.nii.gz, NAME_flair.nii.gz, "
    "NAME_seg.nii.gz (1 necrosis, 2 oedema; 4 enhancing only where NAME is one of BraTS's)",
    "BraTS 2023 and later: NAME-t1n.nii.gz, NAME-t1c.nii.gz, NAME-t2w.nii.gz, NAME-t2f.nii.gz, "
    "NAME-seg.nii.gz (1 necrosis, 2 oedema, 3 enhancing)",
    "Medical Segmentation Decathlon, Task01: dataset.json with imagesTr and labelsTr",
    "BIDS: sub-NAME/[ses-NAME/]anat with _T1w, _ce-gadolinium_T1w, _T2w, _FLAIR, and "
    "derivatives/**/sub-NAME*_dseg or *_mask",
    "DICOM: studies in folders or .zip files, classic or enhanced MR, a mask as seg.nii.gz in the "
    "study's folder",
    "any other: a .csv file in the folder itself with the columns patient, session, t1n, t1c, "
    "t2w, t2f, label and paths relative to it; a cell may be empty",
)
"""The layouts that a cohort's folder may have, for people."""

_ENDING: Final = r"(?i:\.nii(\.gz)?)$"
_BRATS_2018: Final = re.compile(
    rf"^(?:(?P<case>.+)_)?(?P<role>t1|t1ce|t2|flair|seg){_ENDING}", re.IGNORECASE
)
_BRATS_2023: Final = re.compile(
    rf"^(?:(?P<case>.+)-)?(?P<role>t1n|t1c|t2w|t2f|seg){_ENDING}", re.IGNORECASE
)
_ROLES_2018: Final = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": LABEL}
_ROLES_2023: Final = {"t1n": "t1n", "t1c": "t1c", "t2w": "t2w", "t2f": "t2f", "seg": LABEL}
_TIME_POINTS: Final = (
    re.compile(r"^(?P<patient>.+-\d{4,})-(?P<session>\d{3})$"),  # BraTS-GLI-00001-000
    re.compile(r"^(?P<patient>brats-.+-\d{4,})-(?P<session>\d{1,2})$", re.IGNORECASE),
    re.compile(r"^(?P<patient>brats1[789]_.+)_(?P<session>\d+)$", re.IGNORECASE),
)
_BIDS: Final = re.compile(
    rf"^(?P<patient>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?(?P<entities>(?:_[A-Za-z]+-"
    rf"[A-Za-z0-9]+)*)_(?P<suffix>[A-Za-z0-9]+){_ENDING}"
)
_BIDS_IMAGES: Final = {"T1w": "t1n", "T2w": "t2w", "FLAIR": "t2f"}
_BIDS_MASKS: Final = ("dseg", "mask")
_BIDS_OTHER: Final = ("beh", "dwi", "eeg", "fmap", "func", "meg", "motion", "mrs", "perf", "pet")
_NOT_A_TUMOUR: Final = re.compile(
    r"_desc-(brain|aseg|aparcaseg|head)|_label-(brain|GM|WM|CSF|head)", re.IGNORECASE
)
_ANATOMY_TOOLS: Final = re.compile(r"^(fmriprep|smriprep|freesurfer|fastsurfer|synthseg)", re.I)


def brats(path: Path) -> Finding | None:
    """Return what ``path`` is by BraTS's names; None when it is not named so."""
    for pattern, roles in ((_BRATS_2023, _ROLES_2023), (_BRATS_2018, _ROLES_2018)):
        if match := pattern.match(path.name):
            name = match["case"] or path.parent.name
            patient, session = time_point(name)
            layout = "brats-2023" if pattern is _BRATS_2023 else "brats-2018"
            if layout == "brats-2018" and name.lower().startswith("brats2021"):
                layout = "brats-2021"
            label_map, settled = by_brats_name(name, old=pattern is _BRATS_2018)
            return Finding(
                layout=layout,
                place=path.parent,
                patient=patient,
                session=session,
                role=roles[match["role"].lower()],
                image=Image(path),
                label_map=label_map,
                label_settled=settled,
            )
    return None


def time_point(name: str) -> tuple[str, str]:
    """Split a case's name into patient and session, "" when the name holds one part only.

    A name like X-00001-000 is split whatever X is. To take two patients for one costs some
    training; to take one patient for two would halve that patient's privacy.
    """
    for pattern in _TIME_POINTS:
        if match := pattern.match(name):
            return match["patient"], match["session"]
    return name, ""


def in_bids(path: Path, root: Path) -> bool:
    """Say whether ``path`` belongs to a BIDS dataset, with or without a part in a case."""
    match = _BIDS.match(path.name)
    return match is not None and (
        match["suffix"] in (*_BIDS_IMAGES, *_BIDS_MASKS)
        or path.parent.name in ("anat", *_BIDS_OTHER)
        or "derivatives" in path.relative_to(root).parts[:-1]
    )


def derived_anatomy(folder: Path, root: Path) -> bool:
    """Say whether ``folder`` holds what a tool derived, such as FreeSurfer's subjects."""
    folders = folder.relative_to(root).parts
    return "derivatives" in folders or any(_ANATOMY_TOOLS.match(one) for one in folders)


def bids(path: Path, root: Path) -> Finding | None:
    """Return what a file of a BIDS dataset is; None when it has no part in a case.

    Images are taken from the dataset itself, masks also from its derivatives, those of tools
    that segment healthy anatomy excepted.
    """
    match = _BIDS.match(path.name)
    folders = path.relative_to(root).parts[:-1]
    if match is None or path.parent.name in _BIDS_OTHER:
        return None
    derived = "derivatives" in folders
    suffix, entities = match["suffix"], match["entities"]
    if suffix in _BIDS_MASKS:
        if _NOT_A_TUMOUR.search(entities) or any(_ANATOMY_TOOLS.match(one) for one in folders):
            return None
        role = LABEL
    elif suffix in _BIDS_IMAGES and not derived:
        role = "t1c" if suffix == "T1w" and "_ce-" in entities else _BIDS_IMAGES[suffix]
    else:
        return None
    place = path.parent
    if derived:
        place = root.joinpath(*folders[: folders.index("derivatives")])
    else:
        for part in (r"anat", r"ses-[A-Za-z0-9]+", r"sub-[A-Za-z0-9]+"):
            place = place.parent if re.fullmatch(part, place.name) else place
    return Finding(
        layout="bids",
        place=place,
        patient=match["patient"],
        session=match["session"] or "",
        role=role,
        image=Image(path),
        label_map=PRESUMED,
        label_settled=False,
    )
