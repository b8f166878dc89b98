"""Found a consortium, admit hospitals, publish studies: everything that makes or signs something.

The coordinator's folder::

    consortium.json     name, public address, where the gateway listens (no secret)
    keys/               coordinator.key (Ed25519), ca.key, server.key, superexec.secret: 0600
    ca.crt, server.crt  TLS: the CA goes into every kit
    sites/              one signed enrolment request a hospital
    charters.json       who speaks for the consortium, if that was changed
    drafts/             what waits for the signature of another coordinator
    studies/ID/         protocol.json (signed) and the study's rounds
    journal.jsonl       what happened
    flower/             Flower's database and logs; the SuperLink's own door
    (``server.consortium.superlink_address``)
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from common.errors import IdentityError, ProtocolError, StateError
from common.records import format_versions
from common.records.atomic_files import read_json, write_json, write_secret
from common.records.journal import Journal
from common.records.weights import digest
from common.study.amendment import changes, check_amendment
from common.study.protocol import PROTOCOL, StudyProtocol, preprocessing_digest, read_protocol
from common.study.starting_weights import read as read_weights
from common.trust.coordinator_charter import Charter
from common.trust.enrolment import Kit, Request, open_request, sign_kit
from common.trust.identity import Identity, Statement, fingerprint
from server.consortium import certificates
from server.consortium.coordinator_charter import Charters
from server.consortium.listen_address import Listening, interface
from server.consortium.published_study import Study, keep_initial
from server.consortium.sites import Sites
from server.consortium.superlink_address import Hub
from server.consortium.watched_threads import WatchedThreads


class ConsortiumSettings(BaseModel):
    """The public settings of a consortium: whom hospitals call, and where that call arrives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    host: str = Field(max_length=253, pattern=r"^[A-Za-z0-9.-]+$|^[0-9A-Fa-f:.]+$")
    port: int = Field(ge=1, le=65535)
    listen: str = ""
    """Address and port to which the gateway is bound; empty where ``host`` and ``port`` say it."""
    version: str

    @field_validator("host")
    @classmethod
    def _one_spelling(cls, host: str) -> str:
        """A host is compared in many places, and means the same in capitals."""
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            return host.lower()

    @field_validator("listen")
    @classmethod
    def _can_be_read(cls, listen: str) -> str:
        return str(Listening.read(listen, default="")) if listen else ""


@dataclass(frozen=True)
class Consortium:
    """The coordinator's folder, opened."""

    folder: Path
    settings: ConsortiumSettings

    @classmethod
    def open(cls, folder: Path) -> Consortium:
        """Raise StateError if ``folder`` is not a coordinator's folder."""
        path = folder / "consortium.json"
        if not path.exists():
            raise StateError(
                f"{folder} is not a coordinator's folder.",
                do="Found one with `gliofed-server init`, or check the path.",
            )
        said = read_json(path, what="consortium")
        if isinstance(said, dict):
            said = format_versions.current("consortium", said, where=path)
        return cls(folder.resolve(), _settings(said, source=str(path)))

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    @property
    def sites(self) -> Sites:
        return Sites(self.folder / "sites", self.journal)

    @property
    def identity(self) -> Identity:
        return Identity.load(self.folder / "keys" / "coordinator.key")

    @property
    def charters(self) -> Charters:
        return Charters.open(self.folder, own=self.identity.public)

    @property
    def charter(self) -> Charter:
        """Who the coordinators are now."""
        return self.charters.current

    @property
    def superexec_secret(self) -> Path:
        return self.folder / "keys" / "superexec.secret"

    @property
    def threads(self) -> WatchedThreads:
        """What the executor's threads say of themselves."""
        return WatchedThreads(self.folder / "flower" / "threads")

    @property
    def lock(self) -> Path:
        """Held by the process that serves this consortium."""
        return self.folder / "flower" / "serve.lock"

    @property
    def address(self) -> str:
        """Where hospitals connect: the gateway."""
        host = self.settings.host
        return f"[{host}]:{self.settings.port}" if ":" in host else f"{host}:{self.settings.port}"

    @property
    def listening(self) -> Listening:
        """Where the gateway is bound."""
        own = self.settings
        at = interface(own.host)
        return Listening.read(own.listen, default=at) if own.listen else Listening(at, own.port)

    @property
    def hub(self) -> Hub:
        """The SuperLink's own door; raises StateError if the consortium was never served."""
        return Hub.open(self.folder / "flower")

    def study(self, study: str) -> Study:
        """Raise StateError if the study was not published here."""
        return Study.open(self.folder / "studies" / study, coordinators=self.charters.ever)

    def studies(self) -> list[Study]:
        names = sorted(path.parent.name for path in self.folder.glob("studies/*/protocol.json"))
        return [self.study(name) for name in names]


def init(folder: Path, *, name: str, host: str, port: int, listen: str = "") -> Consortium:
    """Found a consortium in ``folder``; raise StateError if something is there already.

    Hospitals call ``host`` and ``port``; the gateway listens there too, or at ``listen``.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty.", do="Choose a new folder for the consortium.")
    settings = _settings(
        {
            "name": name,
            "host": host,
            "port": port,
            "listen": str(Listening.read(listen, default=interface(host))) if listen else "",
            "version": version("gliofed"),
        },
        source="What was given",
    )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    identity = Identity.create(folder / "keys" / "coordinator.key")
    write_secret(folder / "keys" / "superexec.secret", secrets.token_hex(32).encode())
    certificates.make(folder, name=name, host=settings.host)
    keep_settings(Consortium(folder, settings))
    consortium = Consortium.open(folder)
    consortium.journal.append(
        "consortium founded", name=name, address=consortium.address, key=identity.public
    )
    return consortium


def readdressed(
    consortium: Consortium, *, host: str = "", port: int = 0, listen: str = ""
) -> Consortium:
    """Return the consortium as it would be with another address; raise StateError."""
    old = consortium.settings
    at = interface(host or old.host)
    changed = {
        "host": host or old.host,
        "port": port or old.port,
        "listen": str(Listening.read(listen, default=at)) if listen else str(consortium.listening),
    }
    settings = _settings({**old.model_dump(), **changed}, source="What was given")
    return Consortium(consortium.folder, settings)


def keep_settings(consortium: Consortium) -> None:
    """Write the settings that the consortium has from now on."""
    values = {"format": format_versions.NEWEST["consortium"], **consortium.settings.model_dump()}
    write_json(consortium.folder / "consortium.json", values)


def admit(consortium: Consortium, request: Path, kit: Path) -> Kit:
    """Admit the hospital of ``request`` and write its kit; raise IdentityError or StateError."""
    statement = Statement.load(request, what="enrolment request")
    wanted = open_request(statement)
    check_keys(consortium, wanted)
    if other := consortium.sites.alike(wanted.site):
        raise IdentityError(
            f"{wanted.site} and {other}, which was admitted before, would be taken for one "
            "hospital: their names differ in nothing but capitals, hyphens and underscores.",
            do="Let the hospital choose another name: `gliofed-site request` in a new folder.",
            code="site-name",
        )
    known = consortium.sites.get(wanted.site)
    if known is not None and known.identity_key != wanted.identity_key:
        raise IdentityError(
            f"A site named {wanted.site} was admitted with another key "
            f"({fingerprint(known.identity_key)}).",
            do="Let the hospital choose another name, or find out who sent this request.",
        )
    answer = kit_for(consortium, wanted)
    if known is None:
        consortium.journal.append(
            "site admitted", site=wanted.site, key=wanted.identity_key, version=wanted.version
        )
        consortium.sites.add(statement)
    sign_kit(answer, consortium.identity).save(kit)
    return answer


def check_keys(consortium: Consortium, request: Request) -> None:
    """Raise IdentityError unless the keys of ``request`` are keys, and nobody else's here."""
    consortium.sites.check_keys(request)
    if request.identity_key in consortium.charter.keys:
        raise IdentityError(
            f"{request.site} asks with the key of a coordinator.",
            do="A hospital makes its own keys with `gliofed-site request`, in a new folder.",
            code="doubled-key",
        )


def kit_for(consortium: Consortium, request: Request) -> Kit:
    """Return what the hospital of ``request`` needs to connect now."""
    charter = consortium.charter
    return Kit(
        consortium=consortium.settings.name,
        coordinator_key=consortium.identity.public,
        site=request.site,
        identity_key=request.identity_key,
        address=consortium.address,
        ca_certificate=(consortium.folder / "ca.crt").read_text(),
        charter=charter if charter.number else None,
    )


def frozen_protocol(
    consortium: Consortium, path: Path, *, initial_sha256: str = ""
) -> StudyProtocol:
    """Return the protocol at ``path`` with what publishing fills in; raise ProtocolError.

    ``initial_sha256`` is the digest of the starting weights, if any are given.
    """
    protocol = read_protocol(path)
    own = preprocessing_digest(protocol.preprocessing)
    if protocol.preprocessing_sha256 not in {"", own}:
        raise ProtocolError(
            f"{path} asks for another preprocessing than this version of gliofed has.",
            do="Remove preprocessing_sha256 from the protocol, or install the version it names.",
        )
    if protocol.initial_sha256 not in {"", initial_sha256}:
        raise ProtocolError(
            f"{path} names starting weights ({protocol.initial_sha256[:16]}) that are not given "
            "with it.",
            do="Leave initial_sha256 out; `gliofed-server study --initial FILE` fills it in.",
            code="initial",
        )
    filled = {"preprocessing_sha256": own, "initial_sha256": initial_sha256}
    frozen = protocol.model_copy(update=filled)
    if frozen.expires <= dt.datetime.now(dt.UTC).date():
        raise ProtocolError(f"{path} expired on {frozen.expires}.", do="Set a date to come.")
    unknown = sorted(set(frozen.aggregation.weights) - set(consortium.sites.names()))
    if unknown:
        raise ProtocolError(
            f"{path} gives weights to sites that were not admitted: {', '.join(unknown)}.",
            do="Admit them first, or correct the names.",
        )
    return frozen


def publish(consortium: Consortium, path: Path, *, initial: Path | None = None) -> StudyProtocol:
    """Validate, freeze and sign the protocol at ``path``; raise ProtocolError.

    ``initial`` are the study's starting weights: the protocol names their digest, for the sites to
    approve, and they are kept with it. Raises ModelError if they do not fit its network.
    """
    given = None if initial is None else read_weights(initial, read_protocol(path).network)
    named = "" if given is None else digest(given)
    frozen = frozen_protocol(consortium, path, initial_sha256=named)
    if frozen.supersedes:
        raise ProtocolError(
            f"{path} is an amendment.", do="`gliofed-server amend` publishes it.", code="amendment"
        )
    folder = consortium.folder / "studies" / frozen.study
    if (folder / "protocol.json").exists():
        published = consortium.study(frozen.study)
        if published.protocol.digest != frozen.digest:
            other = ", ".join(key for key, _ in changes(published.protocol, frozen))
            raise ProtocolError(
                f"A study named {frozen.study} was published with another protocol; it differs in "
                f"{other}.",
                do="`gliofed-server amend` gives a study a new version; else take a new study id.",
            )
        if given is not None:
            published.give(given)
        return frozen
    if given is not None:
        keep_initial(folder, given)
    else:
        (folder / "initial.safetensors").unlink(missing_ok=True)  # of a draft that never counted
    sign_and_publish(consortium, frozen)
    return frozen


def sign_and_publish(consortium: Consortium, protocol: StudyProtocol) -> bool:
    """Sign a protocol and publish it; return False if it is a draft that others must sign too."""
    statement = consortium.identity.sign(PROTOCOL, protocol.model_dump(mode="json"))
    if not consortium.charter.missing(statement):
        put_in_force(consortium, statement, protocol)
        return True
    statement.save(drafts(consortium, statement))
    consortium.journal.append("study drafted", study=protocol.study, protocol=protocol.digest)
    return False


def put_in_force(consortium: Consortium, statement: Statement, protocol: StudyProtocol) -> None:
    """Publish a protocol that enough coordinators signed, or let it follow the one before.

    Raises IdentityError, and ProtocolError for a version that does not follow.
    """
    consortium.charter.opened(statement, kind=PROTOCOL)
    if protocol.supersedes:
        study = consortium.study(protocol.study)
        check_amendment(study.protocol, protocol)
    consortium.journal.append(
        "study amended" if protocol.supersedes else "study published",
        study=protocol.study,
        protocol=protocol.digest,
        signed_by=sorted(fingerprint(key) for key in statement.signers()),
    )
    if protocol.supersedes:
        study.stage(statement)
    else:
        statement.save(consortium.folder / "studies" / protocol.study / "protocol.json")


def drafts(consortium: Consortium, statement: Statement) -> Path:
    """Return where a statement waits until enough coordinators signed it."""
    name = statement.body["study"] if statement.kind == PROTOCOL else statement.kind
    return consortium.folder / "drafts" / f"{name}.json"


def _settings(values: Any, *, source: str) -> ConsortiumSettings:
    try:
        return ConsortiumSettings.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'form'}: {item['msg']}" for item in error.errors()
        )
        raise StateError(
            f"{source} does not describe a consortium: {wrong}.", do="Correct what is named."
        ) from None
