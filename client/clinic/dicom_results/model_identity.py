"""Which model made an object, and how DICOM says so.

Algorithm and equipment name the model, its version, its round and the digest of its weights beside
the version of gliofed, so that a mask in an archive can be traced to the release that drew it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

MANUFACTURER: Final = "gliofed"
CONTENT_LABEL: Final = "RESEARCH_USE"
"""At most 16 capital letters, digits and underscores."""

RESEARCH_USE: Final = "Research use only: not reviewed by a person"
NUMBERS: Final = {"segmentation": 900, "report": 901, "uncertainty": 902, "document": 903}
"""Series numbers of the results, behind those of a scanner."""

_REVIEWED_NUMBERS: Final = 10
"""What is added to the number of what was reviewed."""

_NOT_IN_NAMES: Final = str.maketrans(dict.fromkeys("\\^=", " "))

Trackings = Mapping[str, hd.UID]
"""The tracking UID of each label and region: the same in the mask and in the report."""


@dataclass(frozen=True, eq=False)
class Reviewed:
    """Who reviewed what an object says, and what the object follows.

    ``corrected`` says whether the person changed the mask. ``trackings`` are those of the result
    that was reviewed, ``report`` is its structured report. ``organization`` is the person's.
    """

    reviewer: str
    decision: str
    corrected: bool
    time: dt.datetime
    organization: str
    trackings: Trackings
    report: Dataset

    @property
    def name(self) -> str:
        """The reviewer as a DICOM person's name of one part."""
        return " ".join(self.reviewer.translate(_NOT_IN_NAMES).split())[:64]


def research_use(reviewed: Reviewed | None) -> str:
    """Return in at most 64 letters what an object is for, and whether a person has seen it."""
    return (
        RESEARCH_USE if reviewed is None else f"Research use only: {reviewed.decision} by a person"
    )


def describe(kind: str, reviewed: Reviewed | None = None) -> dict[str, Any]:
    """Return what highdicom asks of every new object: its UIDs, numbers and maker."""
    word = "" if reviewed is None else f", {reviewed.decision}"
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "series_number": NUMBERS[kind] + _REVIEWED_NUMBERS * (reviewed is not None),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "series_description": f"AI glioma {kind}{word} (research use)",
    }


def device(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the equipment of objects that hold voxels."""
    return {
        "manufacturer_model_name": str(model["name"])[:64],
        "software_versions": software(),
        "device_serial_number": str(model["weights_sha256"]),
    }


def software() -> str:
    """Return the version of gliofed."""
    return version("gliofed")


def parameters(model: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells a model from others of its name."""
    keys = ("round", "weights_sha256", "preprocessing_sha256")
    return {"gliofed": software(), **{key: str(model[key]) for key in keys}}


def algorithm(model: Mapping[str, Any]) -> hd.AlgorithmIdentificationSequence:
    """Return the algorithm of a segment."""
    return hd.AlgorithmIdentificationSequence(
        name=str(model["name"])[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=str(model["version"]),
        source=f"{MANUFACTURER} {software()}",
        parameters=parameters(model),
    )


def measured_by(model: Mapping[str, Any]) -> hd.sr.AlgorithmIdentification:
    """Return the algorithm of a measurement."""
    return hd.sr.AlgorithmIdentification(
        name=str(model["name"])[:64],
        version=str(model["version"]),
        parameters=[f"{key}={value}" for key, value in parameters(model).items()],
    )


def equipment(
    model: Mapping[str, Any], reviewed: Reviewed | None = None
) -> list[hd.ContributingEquipment]:
    """Return the model, and the review page where a person changed what it drew, as equipment."""
    made = [
        hd.ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=str(model["name"])[:64],
            software_versions=[software(), str(model["version"])],
            device_serial_number=str(model["weights_sha256"]),
            contribution_datetime=dt.datetime.now(),
            contribution_description=(
                f"{research_use(reviewed)}. Model {model['name']} {model['version']}, round "
                f"{model['round']}, weights sha256:{model['weights_sha256']}"
            ),
        )
    ]
    if reviewed is None or not reviewed.corrected:
        return made
    page = hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ModifyingEquipment,
        manufacturer_model_name="gliofed-clinic review",
        software_versions=[software()],
        contribution_datetime=reviewed.time,
        contribution_description=f"A person corrected the mask: {reviewed.name}",
    )
    return [*made, page]
