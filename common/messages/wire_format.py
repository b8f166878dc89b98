"""What travels between coordinator and hospital, and the checks on both ends.

An *order* goes to a site, a *report* comes back. Both are Flower records: one ``ConfigRecord``
with validated JSON, and at most one ``ArrayRecord`` with float32 arrays, all in one safetensors
body: Flower would make signed calls at every hop for each array of its own. The arrays of an update
may be encoded in fewer bytes (``common.messages.compression``); weights never are. The report model
is the outbound allow-list: a value that it has no field for cannot leave a hospital. Arrays are
checked before decoding (number of bytes, names, shapes, dtypes) and after (finite, norm), since
Flower's own metadata is the sender's claim. Texts about failures are codes; a reason in words is
sent only for failures whose words are about the protocol and the site's policy, never about a case.

A field that is not used does not travel. Each message names the version of its sender; of one that
is a minor version away (``common.versions``) a field that is not known here is left unread. What
must not be left unread has no place in a new field.

Each message carries the head of its sender's journal, and the last head that its sender knows of
the receiver's. A journal that was cut, put back from an old copy or written anew does not hold the
head that the other side kept: neither side can rewrite its history alone.
"""

from __future__ import annotations

import io
import json
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from common.errors import (
    ConsentError,
    GliofedError,
    IdentityError,
    PrivacyError,
    ProtocolError,
    UpdateError,
)
from common.foreign_text import printable
from common.messages.compression import opened, plain, restored
from common.records.weights import Arrays, check_like
from common.study.cohort_histograms import MOST_COUNT
from common.study.protocol import MessageOptions, StudyId
from common.versions import own, release, skew

Content = RecordDict
OrderKind = Literal["offer", "initial", "describe", "train", "evaluate"]
Status = Literal["done", "pending", "refused", "failed"]

MESSAGE_TYPES: Final[dict[str, str]] = {
    "offer": f"{MessageType.QUERY}.offer",
    "initial": f"{MessageType.QUERY}.initial",
    "describe": f"{MessageType.QUERY}.describe",
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
}

_SAYABLE = (ConsentError, ProtocolError, PrivacyError, IdentityError)
_CASE_COUNT_EDGES = (1, 10, 20, 50, 100, 200, 500, 1000)
_FORMAT: Final = "safetensors"
RESTORED: Final = "restored"
"""Code by which a site that was restored from a backup asks for an account of its orders."""
CONTROL: Final = "control/"
"""Before the name of an array in an order that is no weight, but the control variate of SCAFFOLD
for the array of that name in the update. ``weights_sha256`` is of the weights alone."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Head = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
"""SHA-256 of a journal's last line; empty if none is known."""


Version = Annotated[str, Field(max_length=40, pattern=r"^[0-9A-Za-z.+!-]*$")]
"""Of the sender's gliofed; empty if it does not say."""

Round = Annotated[int, Field(ge=0, le=10_000)]
"""No protocol has more rounds."""

Count = Annotated[float, Field(ge=-MOST_COUNT, le=MOST_COUNT)]
"""Of a bin of a histogram, with its noise."""

Words = Annotated[str, AfterValidator(printable)]
"""Text of the sender that people read."""

MOST_EPSILON: Final = 1e6
"""Of what a patient was charged: a thousand times what a protocol may allow."""


class Given(_Frozen):
    """An order that the coordinator gave a site, and how often."""

    study: StudyId
    kind: OrderKind
    round: Round
    times: int = Field(default=1, ge=1, le=1_000_000)


class Order(_Frozen):
    """What the coordinator asks of a site. ``protocol`` is the signed protocol, as JSON text."""

    kind: OrderKind
    study: StudyId
    round: Round
    protocol: str = Field(max_length=200_000)
    weights_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    coordinator_head: Head = ""
    """Of the coordinator's journal, when it gave the order."""
    site_head: Head = ""
    """Of the site's journal, as the coordinator last heard it."""
    kit: str = Field(default="", max_length=50_000)
    """A newer signed kit for this site, as JSON text; see ``client.site.key_renewal``."""
    charters: tuple[Annotated[str, Field(max_length=20_000)], ...] = Field(
        default=(), max_length=100
    )
    """The signed charters of the consortium since its first, as JSON texts."""
    folded_round: Round = 0
    """The last round that this site trained for and whose update is part of the model; 0 if none:
    with SCAFFOLD the site's control variate follows that update, and no other."""
    version: Version = ""
    account: tuple[Given, ...] | None = Field(default=None, max_length=10_000)
    """For a site that was restored from a backup, and asked: what it was given since."""


class PrivacySpent(_Frozen):
    """What the study has cost its worst patient at the site: facts, and epsilon at ``delta``."""

    noise_multiplier: float = Field(gt=0, le=1e4)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=0, le=1_000_000_000)
    delta: float = Field(gt=0, lt=1)
    epsilon: float = Field(ge=0, le=MOST_EPSILON)


class Report(_Frozen):
    """What a site answers. Every field is on the allow-list; nothing else can leave."""

    kind: OrderKind
    study: StudyId
    round: Round
    status: Status
    code: str = Field(default="", max_length=60, pattern=r"^[a-z0-9-]*$")
    reason: Words = Field(default="", max_length=2000)
    approval: str = Field(default="", max_length=20_000)
    dice: dict[Literal["WT", "TC", "ET"], Annotated[float, Field(ge=0, le=1)]] | None = None
    dice_noise: float | None = Field(default=None, gt=0, le=1e6)
    """About the standard deviation of the noise in ``dice``; None if the scores are exact."""
    statistics: dict[str, tuple[Count, ...]] | None = None
    """Noised histograms of the cohort (``common.study.cohort_histograms``), which the protocol
    asked for.
    """
    case_count: str | None = Field(default=None, pattern=r"^(0|\d{1,5}-\d{1,5}|\d{1,5}\+)$")
    privacy_spent: PrivacySpent | None = None
    withdrawn: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        default=(), max_length=10_000
    )
    """Rounds that saw patients who have withdrawn since."""
    renewal: str = Field(default="", max_length=10_000)
    """A request with new keys of the site, signed by the old one as well, as JSON text."""
    kit_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the signed kit that the site uses."""
    site_head: Head = ""
    """Of the site's journal, when the reply left."""
    ledger_head: Head = ""
    """Of the site's privacy ledger, when the reply left: a chain of salted hashes."""
    coordinator_head: Head = ""
    """Of the coordinator's journal, as the site last heard it before this order."""
    version: Version = ""


def case_count_bucket(count: int) -> str:
    """Return the bucket that stands for ``count`` outside the hospital, such as ``20-49``."""
    if count < _CASE_COUNT_EDGES[0]:
        return "0"
    low = max(edge for edge in _CASE_COUNT_EDGES if edge <= count)
    higher = [edge for edge in _CASE_COUNT_EDGES if edge > count]
    return f"{low}-{higher[0] - 1}" if higher else f"{low}+"


def refusal(order: Order, error: GliofedError) -> Report:
    """Return the report that says why ``order`` was not done, without a word about a patient."""
    refused = isinstance(error, _SAYABLE)
    return Report(
        kind=order.kind,
        study=order.study,
        round=order.round,
        status="refused" if refused else "failed",
        code=error.code,
        reason=error.message[:2000] if refused else "",
        version=own(),
    )


def pack(
    value: Order | Report, arrays: Mapping[str, NDArray[np.float32]] | bytes | None
) -> RecordDict:
    """Return ``value`` and its arrays as the content of a Flower message.

    Bytes are the body of an update as ``common.messages.compression.encode`` made it.
    """
    content = RecordDict(
        {"gliofed": ConfigRecord({"json": value.model_dump_json(exclude_defaults=True)})}
    )
    if arrays is not None:
        data = arrays if isinstance(arrays, bytes) else plain(arrays)
        content["arrays"] = ArrayRecord({_FORMAT: Array("uint8", (len(data),), _FORMAT, data)})
    return content


def readdressed(content: RecordDict, value: Order) -> RecordDict:
    """Return a message with another order and the same arrays, which are not copied."""
    other = RecordDict(
        {"gliofed": ConfigRecord({"json": value.model_dump_json(exclude_defaults=True)})}
    )
    if "arrays" in content:
        other["arrays"] = content["arrays"]
    return other


def body_bytes(content: RecordDict) -> int:
    """Return how many bytes the arrays of a message are as they travel."""
    return sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def peek_order(content: RecordDict) -> Order:
    """Return the order without its arrays; raise UpdateError if it is malformed."""
    order: Order = _read(Order, content)
    return order


def unpack_order(content: RecordDict) -> tuple[Order, Arrays]:
    """Return the order and its arrays; raise UpdateError if it is malformed."""
    order = peek_order(content)
    arrays = _decode(content, None)
    if any(not np.isfinite(array).all() for array in arrays.values()):
        raise UpdateError(f"The {order.kind} order holds numbers that are not finite.")
    return order, arrays


def unpack_report(
    content: RecordDict,
    *,
    template: Mapping[str, tuple[int, ...]] | None,
    max_norm: float,
    any_arrays: bool = False,
    options: MessageOptions | None = None,
) -> tuple[Report, Arrays]:
    """Return a site's report and its arrays, checked; empties ``content`` to free memory.

    ``template`` gives the name and shape of every array that a report with status ``done`` must
    bring, or None if it must bring none; ``any_arrays`` takes any names and shapes (a site's
    starting weights, float32). ``options`` are the protocol's, by which an update is encoded.

    Raises UpdateError (codes ``update-*``).
    """
    report = _read(Report, content)
    done = report.status == "done"
    expected = template if template is not None and done else {}
    arrays = _decode(content, None if any_arrays and done else expected, options)
    if any_arrays and done:
        if not arrays:
            raise UpdateError("The reply brings no arrays.", code="update-name")
        expected = {name: array.shape for name, array in arrays.items()}
    check_like(arrays, expected, max_norm=max_norm)
    return report, arrays


def _read(model: Any, content: RecordDict) -> Any:
    record = content.config_records.get("gliofed")
    text = record.get("json") if record is not None else None
    if not isinstance(text, str) or set(content) - {"gliofed", "arrays"}:
        raise UpdateError(
            "A message does not have the form that gliofed speaks.",
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code="update-form",
        )
    try:
        return model.model_validate_json(_known(model, text))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, item["loc"])) or "form" for item in error.errors())
        raise UpdateError(
            f"A {model.__name__.lower()} has missing, extra or impossible fields: {wrong[:300]}.",
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code="update-form",
        ) from None


def _known(model: type[Order] | type[Report], text: str) -> str:
    """Return a message without the fields that a neighbouring version added.

    Raises UpdateError (code ``version``) if its sender is further off and it has such fields.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    strange = set(value) - set(model.model_fields) if isinstance(value, dict) else set()
    theirs = str(value.get("version", ""))[:40] if strange else ""
    if not theirs or release(theirs) == release(own()):
        return text
    sides = {"site": theirs, "coordinator": own()}
    if model is Order:
        sides = {"site": own(), "coordinator": theirs}
    if said := skew(**sides):
        raise UpdateError(said, code="version")
    return json.dumps({name: one for name, one in value.items() if name not in strange})


def _decode(
    content: RecordDict,
    expected: Mapping[str, tuple[int, ...]] | None,
    options: MessageOptions | None = None,
) -> Arrays:
    """Take the arrays out of ``content``; refuse more bytes than ``expected`` can need."""
    record = content.array_records.get("arrays")
    if record is None:
        return {}
    array = record.pop(_FORMAT, None)
    if array is None or record:
        raise UpdateError("The arrays are not in the form that gliofed speaks.", code="update-form")
    options = options or MessageOptions()
    parts = opened(array.data, expected, options)
    del array  # and with it the body, before the arrays take their place
    return restored(parts, expected, options)


_BUNDLE_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "gliofed-study"
version = "{version}"
description = "A gliofed study. This bundle holds no code: sites run what they installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "gliofed"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
"""
_BUNDLE_MAX_BYTES: Final = 64 * 1024
_BUNDLE_README = (
    b"This bundle holds no code. Each site runs the gliofed that it installed itself.\n"
)


def bundle_sources() -> dict[str, bytes]:
    """Return the files from which the coordinator builds the code-free Flower App Bundle."""
    return {
        "pyproject.toml": _BUNDLE_PROJECT.format(version=own()).encode(),
        "README.md": _BUNDLE_README,
    }


def check_bundle(fab: bytes) -> str:
    """Raise ConsentError (code ``bundle``) unless ``fab`` is the code-free bundle of this product.

    Every file is named and compared; a bundle with any other file, code or not, is refused.
    Returns the version of gliofed that made it, which may be another.
    """
    known = {"pyproject.toml", "README.md", ".info/CONTENT"}
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            names = archive.namelist()
            strangers = sorted(set(names) - known)
            if strangers or len(names) != len(set(names)):
                raise ConsentError(
                    f"The bundle holds foreign files: {', '.join(strangers[:5])[:300]}.",
                    do="Ask the coordinator who launched it; nothing of it was run.",
                    code="bundle",
                )
            if sum(info.file_size for info in archive.infolist()) > _BUNDLE_MAX_BYTES:
                raise zipfile.BadZipFile
            project = tomllib.loads(archive.read("pyproject.toml").decode())
            readme = archive.read("README.md")
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError):
        raise ConsentError("The bundle cannot be read.", code="bundle") from None
    ours = tomllib.loads(bundle_sources()["pyproject.toml"].decode())
    theirs = ""
    if isinstance(project.get("project"), dict):
        theirs = str(project["project"].get("version", ""))[:40]
        project["project"]["version"] = ours["project"]["version"]  # may be another release
    if project != ours or readme != _BUNDLE_README:
        raise ConsentError(
            "The bundle is not that of gliofed: its settings differ from the installed ones.",
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code="bundle",
        )
    return theirs
