"""A tiny consortium for tests: enrolment, protocols and orders in a few lines.

Everything is real but small: phantoms of 24 voxels, a network of two levels, crops of 16 voxels.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.clinic.released_model import Model, open_model
from client.privacy.ledger import Ledger
from client.runtime.order_handler import Participation
from client.site import folder as sites
from client.site.folder import Site
from common.messages.wire_format import Content, Order, OrderKind, Report, pack, unpack_report
from common.records.weights import Arrays, digest
from common.study.protocol import (
    PROTOCOL,
    RELEASE,
    PreprocessingOptions,
    StudyProtocol,
    preprocessing_digest,
)
from common.trust.identity import Identity, Statement
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.rounds.fleet import MemoryFleet
from server.rounds.round_loop import Rounds

STUDY = "glioma-10"
"""With this name a cohort of six phantom patients splits into 4, 1 and 1."""

PATIENTS = 6

_TINY: dict[str, Any] = {
    "study": STUDY,
    "title": "A tiny study",
    "expires": "2090-01-01",
    "rounds": 2,
    "network": {"size": "tiny"},
    "preprocessing": {"spacing_mm": 6.0},
    "training": {
        "local_steps": 2,
        "crop_size": [16, 16, 16],
        "crops_per_patient": 1,
        "learning_rate": 1e-3,
    },
    "aggregation": {"quorum": 1, "deadline_s": 20.0},
    "privacy": {
        "noise_multiplier": 2.0,
        "sampling_rate": 0.5,
        "nominal_patients": 4,
        "max_epsilon": 8.0,
    },
}


def tiny_protocol(**changes: Any) -> StudyProtocol:
    """Return a protocol; a change to a table is laid over the table, anything else replaces."""
    merged = dict(_TINY)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) else value
    options = PreprocessingOptions.model_validate(merged["preprocessing"])
    own = preprocessing_digest(options)
    return StudyProtocol.model_validate({"preprocessing_sha256": own, **merged})


def toml(protocol: StudyProtocol) -> str:
    """Return a protocol as a coordinator writes it."""
    lines: list[str] = []
    values = protocol.model_dump(mode="json", exclude={"preprocessing_sha256"}, exclude_none=True)
    for key, value in sorted(values.items(), key=lambda item: isinstance(item[1], dict)):
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
            continue
        lines.append(f"[{key}]")
        lines += [f"{name} = {json.dumps(one)}" for name, one in value.items()]
    return "\n".join(lines) + "\n"


def found(folder: Path, *, name: str = "Northern Consortium") -> Consortium:
    return provisioning.init(folder, name=name, host="127.0.0.1", port=4433)


def enrol(consortium: Consortium, folder: Path, *, name: str, data: Path) -> Site:
    """Return a hospital that asked, was admitted and joined. It answers at once, as tests need."""
    site = sites.request(folder, name=name, data=data, make_ledger=Ledger.create)
    kit = folder.with_name(f"{name}-kit.json")
    provisioning.admit(consortium, site.folder / "request.json", kit)
    sites.join(site, kit)
    return edit(site, 'answer_every_s = "auto"', "answer_every_s = 0.0")


def edit(site: Site, old: str, new: str) -> Site:
    """Change a line of ``site.toml`` as a person would."""
    edit_to(site.folder, old, new)
    return Site.open(site.folder)


def edit_to(folder: Path, old: str, new: str) -> None:
    """Change a line of the ``site.toml`` in ``folder``, whether or not the whole makes sense."""
    path = folder / "site.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def order(
    coordinator: Identity,
    protocol_: StudyProtocol,
    kind: OrderKind,
    /,
    *,
    number: int = 0,
    weights: Arrays | None = None,
    **changes: Any,
) -> Content:
    """Return the message that gives an order; ``changes`` replace fields of the order."""
    fields: dict[str, Any] = {
        "kind": kind,
        "study": protocol_.study,
        "round": number,
        "protocol": coordinator.sign(PROTOCOL, protocol_.model_dump(mode="json")).dumps(),
        "weights_sha256": digest(weights) if weights is not None else "",
    }
    return pack(Order(**{**fields, **changes}), weights)


def copied(content: Content) -> Content:
    """Return a copy of a message, which whoever reads it may empty."""
    return copy.deepcopy(content)


def answer(participation: Participation, content: Content) -> tuple[Report, Arrays]:
    """Return a site's reply as the coordinator reads it."""
    reply = participation.answer(content)
    return unpack_report(
        reply, template=None, max_norm=1e6, any_arrays="arrays" in reply.array_records
    )


def events(site: Site, *names: str) -> list[Mapping[str, Any]]:
    """Return the facts of the site's journal under these names."""
    return [entry.facts for entry in site.journal.events(*names)]


def publish(consortium: Consortium, protocol: StudyProtocol) -> StudyProtocol:
    """Publish a protocol as a coordinator does, from a TOML file."""
    path = consortium.folder / "draft.toml"
    path.write_text(toml(protocol))
    return provisioning.publish(consortium, path)


def approve(site: Site, consortium: Consortium, protocol: StudyProtocol) -> None:
    """Offer a study to a site, and let a person there approve it."""
    answer(Participation(site), order(consortium.identity, protocol, "offer"))
    site.decide(protocol.study, "approve", by="Dr. Tamm")


def rounds(
    consortium: Consortium, study: str, hospitals: Mapping[str, Participation | Any]
) -> Rounds:
    """Return the rounds of a study over hospitals in this process."""

    def reply(name: str) -> Any:
        hospital = hospitals[name]
        if isinstance(hospital, Participation):
            return lambda _, content: hospital.answer(content)
        return lambda _, content: hospital(content)

    return Rounds(
        consortium.study(study),
        MemoryFleet({name: reply(name) for name in hospitals}),
        journal=consortium.journal,
        sites=consortium.sites,
        poll_s=0.0,
    )


@dataclass(frozen=True)
class World:
    """A consortium of one hospital that finished a study of two rounds and released its models."""

    consortium: Consortium
    site: Site
    releases: tuple[Path, Path]
    """The model after each round."""

    @property
    def release(self) -> Path:
        return self.releases[1]

    def model(self, number: int = 2) -> Model:
        return open_model(self.releases[number - 1])


def sign_again(folder: Path, key: Identity, **changes: Any) -> None:
    """Sign a release's files as they are now."""
    body = Statement.load(folder / "release.json", what="release").body
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in body["files"]
    }
    key.sign(RELEASE, {**body, "files": files, **changes}).save(folder / "release.json")


def change_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def prepared_as(release: Path, key: Identity, options: PreprocessingOptions) -> None:
    """Change a release to that of a study with another preprocessing, and sign it again."""
    own = preprocessing_digest(options)
    body = Statement.load(release / "protocol.json", what="study protocol").body
    changed = {"preprocessing": options.model_dump(mode="json"), "preprocessing_sha256": own}
    key.sign(PROTOCOL, {**body, **changed}).save(release / "protocol.json")
    change_card(release, preprocessing_sha256=own)
    sign_again(release, key, preprocessing_sha256=own)
