"""Medical Segmentation Decathlon, Task01: one 4-D file a case, described by dataset.json.

Source: Antonelli et al. 2022, "The Medical Segmentation Decathlon", Nature Communications 13.
The channels and the meaning of the mask's values are taken from dataset.json, never assumed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from client.cohort.case_assembly import LABEL, Finding, Found, Refusal, relative
from client.imaging.case import Image
from client.imaging.limits import MOST_TABLE_BYTES
from common.records.regular_files import read_regular
from common.regions import LABELS, MODALITIES

DESCRIPTION: Final = "dataset.json"
_FOLDERS: Final = ("imagesTr", "imagesTs", "labelsTr")
_CHANNELS: Final = {
    "t1w": "t1n", "t1": "t1n", "t1n": "t1n",
    "t1gd": "t1c", "t1ce": "t1c", "t1c": "t1c",
    "t2w": "t2w", "t2": "t2w",
    "flair": "t2f", "t2f": "t2f",
}  # fmt: skip


def is_task(files: Iterable[str], folders: Iterable[str]) -> bool:
    """Say whether a folder that holds ``files`` and ``folders`` is a task of the Decathlon."""
    return DESCRIPTION in files and "imagesTr" in folders


def find(folder: Path, files: list[Path], root: Path) -> Iterator[Found]:
    """Yield what the image files of one task are; one refusal when it is not described."""
    try:
        channels, label_map = _describe(json.loads(_described(folder)))
    except (OSError, RecursionError, ValueError, TypeError, AttributeError) as error:
        reason = f"does not describe four sequences and their masks: {error}"
        file = relative(folder / DESCRIPTION, root)
        yield Refusal(folder.name, file, reason, "case-layout")
        return
    for path in files:
        kind = path.parent.name
        if path.parent.parent != folder or kind not in _FOLDERS:
            reason = "lies outside imagesTr, imagesTs and labelsTr"
            yield Refusal(path.parent.name, relative(path, root), reason, "case-name")
            continue
        name = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        roles = {LABEL: None} if kind == "labelsTr" else channels
        for role, index in roles.items():
            yield Finding(
                layout="decathlon",
                place=folder,
                patient=name,
                session="",
                role=role,
                image=Image(path, index),
                label_map=label_map,
            )


def _described(folder: Path) -> bytes:
    return read_regular(folder / DESCRIPTION, most_bytes=MOST_TABLE_BYTES)


def _describe(dataset: Mapping[str, Any]) -> tuple[dict[str, int | None], dict[int, int]]:
    """Return channel index by sequence, and label by mask value; raise ValueError."""
    channels: dict[str, int | None] = {}
    for index, title in dataset.get("modality", {}).items():
        if (name := _CHANNELS.get(str(title).lower())) is not None:
            channels[name] = int(index)
    if set(channels) != set(MODALITIES):
        raise ValueError(f"modality names only {', '.join(channels) or 'none'}")
    label_map: dict[int, int] = {}
    for value, title in dataset.get("labels", {}).items():
        text = str(title).lower()
        if "edema" in text or "oedema" in text:
            label_map[int(value)] = LABELS["ED"]
        elif "non-enhancing" in text or "necro" in text:
            label_map[int(value)] = LABELS["NCR"]
        elif "enhancing" in text:
            label_map[int(value)] = LABELS["ET"]
    if set(label_map.values()) != set(LABELS.values()):
        raise ValueError("labels does not name edema, non-enhancing and enhancing tumour")
    return channels, label_map
