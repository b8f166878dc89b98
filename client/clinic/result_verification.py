"""Whether a result is what was written, from the images and the model that it names.

Each check says in words what holds, what does not, and what could not be looked at; nothing that
was not looked at counts as sound. A check never changes the result. Versions that people reviewed
(``reviews/NNNN``) are results of their own and are checked as such; what was changed in them, and
the chain of their log, is the reviewer's part.

Out of scope: whether the segmentation is good.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import ValidationError

from client.clinic.installed_models import installed_model
from client.clinic.provenance import RESULT, SEAL, sealed_sha256, sha256_of, software
from client.clinic.released_model import Model, open_model
from client.clinic.result_folder import Segmentation, volumes_ml
from client.clinic.result_schema import (
    DEVICE_NAMES,
    MOST_RESULT_BYTES,
    Identity,
    Result,
    computed,
)
from client.clinic.revoked_models import check_not_revoked, revocations_of
from client.clinic.segment import network_of, segment_case
from client.cohort.case_discovery import Decide, read_case
from client.imaging.case import Case
from client.imaging.nifti import read_volume
from client.imaging.prepared_cache import content_sha256
from client.networks.cpu_threads import THREADS
from client.segmentation.dice import dice
from client.site.execution import ExecutionOptions, Hardware, Precision, execution_for
from client.site.folder import Site
from client.site.settings import Machine
from common.errors import CaseError, GliofedError, IdentityError, ModelError, StateError
from common.records.regular_files import read_regular
from common.trust.identity import Statement, fingerprint

Verdict = Literal["holds", "broken", "unchecked"]

MASK: Final = "segmentation.nii.gz"
_REVIEW: Final = re.compile(r"\d{4,}")
_NOT_GIVEN: Final = "Give --model or --site to have it checked."


@dataclass(frozen=True)
class Check:
    """What was found about one thing; ``error`` is what a broken one would raise."""

    about: str
    verdict: Verdict
    says: str
    error: type[GliofedError] = StateError


@dataclass(frozen=True)
class Given:
    """What a result may be checked against; nothing of it is needed."""

    models: Sequence[Path] = ()
    site: Site | None = None
    case: Path | None = None


def verify(folder: Path, given: Given, *, recompute: bool = False) -> tuple[Check, ...]:
    """Check the result in ``folder`` and the reviewed versions in it.

    ``recompute`` segments the case again, as the result says that it was computed, which needs the
    case, the models and such a device. What an older result does not say is as it would be here
    now. Raises StateError if ``folder`` holds no result.
    """
    result = _read(folder)
    checks = [*_version(folder, result, given.site, "")]
    models = {}
    for one in (result.model, *result.together_with):
        model, check = _model(one, result, given)
        checks.append(check)
        if model is not None:
            models[one.weights_sha256] = model
    case, found = _inputs(result, given.case)
    checks += found
    if recompute:
        needed = [models.get(one.weights_sha256) for one in (result.model, *result.together_with)]
        checks.append(_again(folder, result, case, needed, given.site))
    for review in sorted((folder / "reviews").glob("*")):
        if not _REVIEW.fullmatch(review.name):
            continue
        label = f"review {review.name}: "
        try:
            checks += _version(review, _read(review), given.site, label)
        except StateError as error:
            checks.append(Check(f"{label}result", "broken", error.message))
    return tuple(checks)


def exit_code(checks: Sequence[Check]) -> int:
    """Return 0 if nothing is broken, else the exit code of the first that is."""
    return next((one.error.exit_code for one in checks if one.verdict == "broken"), 0)


def _read(folder: Path) -> Result:
    path = folder / RESULT
    do = "Name the folder that `gliofed-clinic segment` wrote."
    try:
        return Result.model_validate(json.loads(read_regular(path, most_bytes=MOST_RESULT_BYTES)))
    except OSError as error:
        raise StateError(
            f"{folder} holds no {RESULT} that can be read: {error.strerror}.", do=do
        ) from error
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise StateError(
            f"{path} is not a result that this gliofed knows: {place}.", do=do
        ) from None
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is damaged: {error}.", do=do) from None


def _version(folder: Path, result: Result, site: Site | None, label: str) -> Iterator[Check]:
    """Check the files of one version: the machine's own, or a reviewed one."""
    yield _seal(folder, site, f"{label}seal")
    yield _files(folder, result, f"{label}files")
    yield _volumes(folder, result, f"{label}volumes")


def _seal(folder: Path, site: Site | None, about: str) -> Check:
    if not (folder / SEAL).exists():
        says = f"No site sealed this result: whether {RESULT} was changed cannot be told."
        return Check(about, "unchecked", says)
    key = None if site is None else site.identity.public
    try:
        signer = Statement.load(folder / SEAL, what="seal").signer
        if site is not None and signer in site.known_identities:
            key = signer  # of before the site renewed its keys
        name, signed = sealed_sha256(folder, signer=key)
    except GliofedError as error:
        return Check(about, "broken", error.message, type(error))
    if signed != sha256_of(folder / RESULT):
        return Check(
            about, "broken", f"{RESULT} was changed after {name} sealed it.", IdentityError
        )
    if key is None:
        says = (
            f"{RESULT} is as a key that says it is {name}'s sealed it; whose key that is was not "
            "checked. Give --site."
        )
        return Check(about, "unchecked", says)
    return Check(about, "holds", f"{RESULT} is as {name} ({fingerprint(key)}) sealed it.")


def _files(folder: Path, result: Result, about: str) -> Check:
    if not result.outputs:
        says = "The result names no digests of its files: an older gliofed wrote it."
        return Check(about, "unchecked", says)
    faults = []
    for name, expected in result.outputs.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != expected:
            faults.append(f"{name} was changed")
    if faults:
        return Check(about, "broken", f"Not as they were written: {', '.join(faults)}.")
    known = {*result.outputs, RESULT, SEAL}
    others = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in known)
    more = f" Not of the result, and not checked: {', '.join(others)}." if others else ""
    return Check(about, "holds", f"All {len(result.outputs)} files are as they were written.{more}")


def _volumes(folder: Path, result: Result, about: str) -> Check:
    """Check that the volumes told are those of the mask: who edits a number forgets the other."""
    try:
        mask = read_volume(folder / MASK, dtype=np.uint8, empty_ok=True)
    except CaseError as error:
        return Check(about, "broken", error.message)
    counted = volumes_ml(Segmentation(mask.data, mask.affine))
    told = {str(name): value for name, value in result.volumes_ml.items()}
    wrong = [name for name, value in counted.items() if abs(told.get(name, -1) - value) > 2e-3]
    if wrong:
        says = f"The volumes of {', '.join(wrong)} in {RESULT} are not those of {MASK}."
        return Check(about, "broken", says)
    return Check(about, "holds", f"The volumes told are those of {MASK}.")


def _model(wanted: Identity, result: Result, given: Given) -> tuple[Model | None, Check]:
    """Find the model ``wanted`` in what was given, and check it as on the day of the result."""
    name = f"{wanted.name} {wanted.version}"
    about = f"model {name}"
    if given.site is None and not given.models:
        return None, Check(about, "unchecked", f"The model was not given. {_NOT_GIVEN}")
    try:
        made = dt.date.fromisoformat(result.made[:10]) if result.made else None
        if given.site is not None:
            model = installed_model(given.site, wanted.name, wanted.version, on=made)
            check_not_revoked(model.card, revocations_of(given.site))
            whose = "this site's coordinator signed it and has not revoked it here"
        else:
            opened = [open_model(folder, on=made) for folder in given.models]
            chosen = next((one for one in opened if _same(one, wanted)), opened[0])
            model, whose = chosen, "whose signature it is was not checked (--site does)"
    except GliofedError as error:
        return None, Check(about, "broken", error.message, type(error))
    if not _same(model, wanted):
        says = (
            f"The result was made with weights {wanted.weights_sha256[:16]}; those of "
            f"{model.card['name']} {model.card['version']} are "
            f"{str(model.card['weights_sha256'])[:16]}."
        )
        return None, Check(about, "broken", says, ModelError)
    says = f"The release is whole and its weights are those of the result; {whose}."
    return model, Check(about, "holds", says)


def _same(model: Model, wanted: Identity) -> bool:
    return model.identity == wanted.model_dump(mode="json")


def _inputs(result: Result, folder: Path | None) -> tuple[Case | None, list[Check]]:
    if folder is None:
        says = "The images were not given. Give --case to have them checked."
        return None, [Check("input", "unchecked", says)]
    try:
        case = read_case(folder, decide=_as_then(result))
        now = {name: content_sha256(image) for name, image in case.images.items()}
    except CaseError as error:
        return None, [Check("input", "broken", error.message, CaseError)]
    except OSError as error:
        says = f"{folder} cannot be read: {error.strerror}."
        return None, [Check("input", "broken", says, CaseError)]
    then = {str(name): image.sha256 for name, image in result.inputs.items()}
    wrong = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if wrong:
        says = f"Not the images that were segmented: {', '.join(wrong)} of {folder}."
        return None, [Check("input", "broken", says, CaseError)]
    says = f"{', '.join(then)} are the images that were segmented."
    return case, [Check("input", "holds", says)]


def _as_then(result: Result) -> Decide:
    """Take the DICOM series for what they were taken when the case was segmented."""
    taken: dict[str, str] = {one.series: name for name, one in result.inputs.items() if one.series}

    def decide(series: Any) -> str | None:
        return taken.get(series.name, "none")

    return decide


def _again(
    folder: Path,
    result: Result,
    case: Case | None,
    models: Sequence[Model | None],
    site: Site | None,
) -> Check:
    sound = [one for one in models if one is not None]
    if case is None or len(sound) < len(models):
        says = "Not segmented again: that needs the very images (--case) and models."
        return Check("mask", "unchecked", says)
    if result.device is not None and not Hardware.here().has(result.device):
        says = (
            f"Not segmented again: it was computed on {DEVICE_NAMES[result.device]}, which torch "
            "does not find here, and another device rounds differently."
        )
        return Check("mask", "unchecked", says)
    try:
        found = segment_case(
            case,
            sound[0],
            [network_of(one) for one in sound],
            execution=_then(result, site),
        )
        kept = read_volume(folder / MASK, dtype=np.uint8, empty_ok=True)
    except CaseError as error:
        return Check("mask", "broken", error.message, CaseError)
    if found.input_sha256 != result.prepared_sha256:
        says = f"The images are prepared differently here than then.{_other_software(result)}"
        return Check("mask", "broken", says, CaseError)
    if kept.data.shape != found.labels.shape or not np.allclose(kept.affine, found.affine):
        return Check("mask", "broken", f"{MASK} does not lie on the images' grid.")
    differ = int(np.count_nonzero(kept.data != found.labels))
    if differ:
        says = (
            f"Segmented again, {differ} of {kept.data.size} voxels have another label (Dice of the "
            f"whole tumour {dice(kept.data > 0, found.labels > 0):.4f}). A few may be another "
            f"machine's rounding. {computed(result)}{_other_software(result)}"
        )
        return Check("mask", "broken", says)
    return Check("mask", "holds", f"Segmented again, all {kept.data.size} voxels are the same.")


def _then(result: Result, site: Site | None) -> ExecutionOptions:
    """Return how the result was computed. Of an older one all but the precision is as here now."""
    predicts_in: Precision = "bfloat16" if result.precision == "bfloat16" else "float32"
    if result.device is None:
        now = execution_for(Machine() if site is None else site.settings.machine)
        return replace(now, predicts_in=predicts_in)
    return ExecutionOptions(
        (result.device,),
        channels_last=result.layout != "channels first",
        predicts_in=predicts_in,
        threads=result.threads or THREADS,
    )


def _other_software(result: Result) -> str:
    now = software()
    other = [
        f"{name} {then}, now {now.get(name, 'not installed')}"
        for name, then in result.software.items()
        if now.get(name) != then
    ]
    return f" Versions then: {'; '.join(other)}." if other else " The versions are the same."
