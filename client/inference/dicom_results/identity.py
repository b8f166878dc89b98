"""Which model made an object, and how DICOM says so.

Algorithm and equipment name the model, its version, its round and the digest of its weights beside
the version of gliofed, so that a mask in an archive can be traced to the release that drew it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import highdicom as hd
from pydicom.sr.codedict import codes

MANUFACTURER: Final = "gliofed"
CONTENT_LABEL: Final = "RESEARCH_USE"
"""At most 16 capital letters, digits and underscores."""

RESEARCH_USE: Final = "Research use only: not reviewed by a person"
NUMBERS: Final = {"segmentation": 900, "report": 901, "uncertainty": 902, "document": 903}
"""Series numbers of the results, behind those of a scanner."""


def describe(kind: str) -> dict[str, Any]:
    """Return what highdicom asks of every new object: its UIDs, numbers and maker."""
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "series_number": NUMBERS[kind],
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "series_description": f"AI glioma {kind} (research use)",
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


def equipment(model: Mapping[str, Any]) -> list[hd.ContributingEquipment]:
    """Return the model as equipment that contributed to an object."""
    return [
        hd.ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=str(model["name"])[:64],
            software_versions=[software(), str(model["version"])],
            device_serial_number=str(model["weights_sha256"]),
            contribution_datetime=dt.datetime.now(),
            contribution_description=(
                f"{RESEARCH_USE}. Model {model['name']} {model['version']}, round "
                f"{model['round']}, weights sha256:{model['weights_sha256']}"
            ),
        )
    ]
