"""The hospital's folder: its settings, keys, kit and the decisions that its people signed.

The folder::

    site.toml           settings and policy (``client.site.settings``); people edit it, gliofed only
                        reads it
    keys/               identity.key (Ed25519), node.key (P-384), superexec.secret, patients.key
                        (which turns patients' names into pseudonyms): 0600
    request.json        what is sent to the coordinator to enrol
    kit.json, ca.crt    what came back, or came newer with an order
    coordinators.json   who speaks for the consortium, if that was changed since
    studies/ID/         protocol.json (signed by the coordinator; the versions before it in
                        versions/), decision.json (signed here), what
                        this site has of its own there and never sends
    (``client.study.round_state``) ledger.sqlite       the privacy budget reviewed/HASH/      cases
    that clinicians reviewed, to train on (``client.cohort.reviewed_cases``) series.json
    which DICOM series people took for which sequence, by keyed hash journal.jsonl       what
    happened, what left stopped.json        that the hospital has stopped the site, while it has
    (``client.site.stop``) retired.json        that the site moved to another machine, and this is
    its old folder cache/ models/ outbox/ flower/
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.site import keys
from client.site.settings import TEMPLATE, SiteSettings
from common import posix
from common.errors import ConsentError, IdentityError, StateError
from common.process.loopback_tls import LoopbackAddress
from common.process.proxies import Proxy, from_environment, is_loopback, parse_proxy
from common.records import format_versions
from common.records.atomic_files import read_json, write_bytes, write_json, write_secret
from common.records.journal import Journal
from common.study.amendment import changes, check_amendment
from common.study.protocol import APPROVAL, PROTOCOL, StudyProtocol, parse_protocol
from common.trust.coordinator_charter import Charter, parse_charter
from common.trust.enrolment import Kit, Request, open_kit, sign_request
from common.trust.identity import Identity, Statement, fingerprint

_DIGEST_LETTERS: Final = 8


class Decision(BaseModel):
    """What a person at the hospital decided about one protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    study: str
    protocol: str
    site: str
    decision: Literal["approve", "refuse"]
    by: str = Field(min_length=1, max_length=200)
    why: str = Field(default="", max_length=500)
    time: str


@dataclass(frozen=True)
class Site:
    """The hospital's folder, opened."""

    folder: Path
    settings: SiteSettings

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Raise StateError if ``folder`` is not a site's folder or its settings are wrong.

        So it does on Windows (``common.posix``).
        """
        posix.required(
            "A site's folder",
            do="On this computer leave out --site: give the released model's folder with --model, "
            "or the site's service with --server.",
        )
        path = folder / "site.toml"
        if not path.exists():
            raise StateError(
                f"{folder} is not a site's folder.",
                do="Make one with `gliofed-site request`, or check the path.",
            )
        try:
            said = format_versions.current(
                "site settings", tomllib.loads(path.read_text(encoding="utf-8")), where=path
            )
            settings = SiteSettings.model_validate(said)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StateError(f"{path} is not TOML: {error}.", do="Correct that line.") from None
        except ValidationError as error:
            lines = [
                f"  {'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
            ]
            raise StateError(
                f"{path} has wrong settings:\n" + "\n".join(lines) + "\n",
                do="Correct each line named above.",
            ) from None
        keys.settle(folder)
        _check_name(folder, settings.name)
        return cls(folder.resolve(), settings)

    @property
    def coordinators(self) -> Charter:
        """Who speaks for the consortium now."""
        path = self.folder / "coordinators.json"
        if not path.exists():
            return self.kit.coordinators
        return parse_charter(read_json(path, what="list of coordinators")["now"])

    @property
    def known_coordinators(self) -> frozenset[str]:
        """Every key that is or was a coordinator's: by them is signed what was taken before."""
        path = self.folder / "coordinators.json"
        now = self.coordinators.keys
        if not path.exists():
            return now
        return now | frozenset(read_json(path, what="list of coordinators")["known"])

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def data(self) -> Path:
        """The cohort's folder; a relative path is relative to the site's folder."""
        return (self.folder / self.settings.data).resolve()

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    @property
    def identity(self) -> Identity:
        return Identity.load(self.folder / "keys" / "identity.key")

    @property
    def known_identities(self) -> frozenset[str]:
        """Every public key by which this site signs or signed."""
        return frozenset((self.identity.public, *keys.former_identities(self.folder)))

    @property
    def superexec_secret(self) -> Path:
        return self.folder / "keys" / "superexec.secret"

    @property
    def runtime(self) -> LoopbackAddress:
        """Where the SuperNode gives its orders to the worker."""
        folder = self.folder / "flower" / "runtime"
        return LoopbackAddress(folder, 0, name="SuperNode", restart="gliofed-site run")

    @property
    def lock(self) -> Path:
        """Held by the process that runs this site, and dated by when it began."""
        return self.folder / "flower" / "run.lock"

    @property
    def contact(self) -> Path:
        """Dated by the last call of the SuperNode's that the coordinator answered well."""
        return self.folder / "flower" / "contact"

    @property
    def way(self) -> Path:
        """Names the proxy through which the SuperNode goes, without credentials."""
        return self.folder / "flower" / "way.json"

    @property
    def heard_version(self) -> Path:
        """Keeps which gliofed the coordinator's last order came from."""
        return self.folder / "flower" / "coordinator.json"

    @property
    def stopped(self) -> Path:
        """There while the hospital has stopped this site (``client.site.stop``)."""
        return self.folder / "stopped.json"

    @property
    def retired(self) -> Path:
        """There since this folder was backed up to go on elsewhere (``client.site.stop``)."""
        return self.folder / "retired.json"

    @property
    def checked(self) -> Path:
        """Numbers of cases that the last check found, by state."""
        return self.folder / "cache" / "checked.json"

    @property
    def clinic_lock(self) -> Path:
        """Held, shared, by the clinical jobs that run here: training waits for their end."""
        return self.folder / "flower" / "clinic.lock"

    @property
    def kit(self) -> Kit:
        """Raise StateError if the site has not joined a consortium yet."""
        path = self.folder / "kit.json"
        if not path.exists():
            raise StateError(
                f"The site {self.name} has not joined a consortium.",
                do="Send request.json to the coordinator and `gliofed-site join` with the answer.",
            )
        statement = Statement.load(path, what="site kit")
        return open_kit(statement, identity_key=self.identity.public)

    @property
    def coordinator(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.kit.address.rpartition(":")
        return host.strip("[]"), int(port)

    def proxy(self, environment: Mapping[str, str]) -> Proxy | None:
        """Return the proxy on the way to the coordinator, or None; raise StateError.

        ``site.toml`` comes before the environment; a coordinator on this machine needs none.
        """
        host, port = self.coordinator
        network = self.settings.network
        if is_loopback(host):
            return None
        if not network.proxy:
            return from_environment(environment, host=host, port=port)
        password = ""
        if network.proxy_password_file:
            password = _password(self.folder / network.proxy_password_file)
        authority = self.folder / network.proxy_ca if network.proxy_ca else None
        if authority is not None and not authority.is_file():
            raise StateError(
                f"The proxy's authority {authority} is missing.",
                do="Correct proxy_ca in site.toml.",
                code="proxy",
            )
        found = parse_proxy(network.proxy, source="site.toml")
        return replace(found, user=network.proxy_user, password=password, authority=authority)

    def study_names(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("studies/*/protocol.json"))

    def protocol(self, study: str) -> StudyProtocol:
        """Return a protocol that was offered to this site; raise StateError."""
        path = self.folder / "studies" / study / "protocol.json"
        if not path.exists():
            raise StateError(
                f"No study named {study} was offered to {self.name}.",
                do="`gliofed-site studies` lists those that were; is `gliofed-site run` running?",
            )
        statement = Statement.load(path, what="study protocol")
        body = statement.opened(
            kind=PROTOCOL,
            signer=statement.signer
            if statement.signer in self.known_coordinators
            else self.kit.coordinator_key,
        )
        return parse_protocol(body, source=str(path))

    def open_protocol(self, statement: Statement) -> StudyProtocol:
        """Return the protocol if enough of the coordinators signed it; raise IdentityError."""
        body = self.coordinators.opened(statement, kind=PROTOCOL)
        return parse_protocol(body, source="The offered protocol")

    def keep_protocol(self, statement: Statement) -> StudyProtocol:
        """Keep an offered protocol, or an amendment of the one kept before, and return it.

        Anything else that differs from the one kept before is refused, an older version also:
        raises ConsentError, and ProtocolError for an amendment that changes what it may not.
        """
        protocol = self.open_protocol(statement)
        path = self.folder / "studies" / protocol.study / "protocol.json"
        if path.exists():
            known = self.protocol(protocol.study)
            if known.digest in protocol.supersedes:
                check_amendment(known, protocol)
                return self._amend(known, protocol, statement)
            if protocol.digest in known.supersedes:
                raise ConsentError(
                    f"Study {protocol.study} is at version {known.version} here; this order is of "
                    f"version {protocol.version}.",
                    do="Ask the coordinator why it orders by an older version.",
                    code="superseded",
                )
            if known.digest != protocol.digest:
                raise ConsentError(
                    f"Study {protocol.study} was offered before with another protocol.",
                    do="Ask the coordinator; a changed protocol needs a new study id.",
                    code="protocol-changed",
                )
            return protocol
        self.journal.append("study offered", study=protocol.study, protocol=protocol.digest)
        statement.save(path)
        return protocol

    def _amend(
        self, known: StudyProtocol, protocol: StudyProtocol, statement: Statement
    ) -> StudyProtocol:
        """Let an amendment take the place of the version before; nobody has approved it yet."""
        folder = self.folder / "studies" / protocol.study
        before = Statement.load(folder / "protocol.json", what="study protocol")
        before.save(folder / "versions" / f"{known.version:04d}.json")
        self.journal.append(
            "study amended",
            study=protocol.study,
            protocol=protocol.digest,
            version=protocol.version,
            changed=[key for key, _ in changes(known, protocol)],
        )
        statement.save(folder / "protocol.json")
        return protocol

    def version_before(self, study: str) -> StudyProtocol | None:
        """Return the newest version of a study before the one that is known now, if any is kept."""
        kept = sorted((self.folder / "studies" / study / "versions").glob("*.json"))
        if not kept:
            return None
        return parse_protocol(Statement.load(kept[-1], what="protocol").body, source=str(kept[-1]))

    def decision(self, study: str) -> tuple[Decision, Statement] | None:
        """Return what was decided about ``study`` with its signature, or None."""
        path = self.folder / "studies" / study / "decision.json"
        if not path.exists():
            return None
        statement = Statement.load(path, what="decision")
        body = statement.opened(kind=APPROVAL, signer=self.identity.public)
        return Decision.model_validate(body), statement

    def decide(
        self,
        study: str,
        decision: Literal["approve", "refuse"],
        *,
        by: str,
        why: str = "",
        digest: str | None = None,
    ) -> Decision:
        """Sign and keep a decision about a study that was offered.

        ``digest`` begins that of the protocol which the person has read. Raises ConsentError if it
        is not the one that lies here now, without the name of a person, or if the words are too
        many.
        """
        offered = self.protocol(study)
        if digest is not None:
            check_digest(offered, digest)
        try:
            value = Decision(
                study=study,
                protocol=offered.digest,
                site=self.name,
                decision=decision,
                by=by.strip(),
                why=why,
                time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            )
        except ValidationError:
            raise ConsentError(
                f"The decision about {study} was not kept: it needs a person's name, of at most "
                "200 letters, and a reason of at most 500.",
                do="Say who decides with --by NAME.",
                code="decision",
            ) from None
        statement = self.identity.sign(APPROVAL, value.model_dump())
        self.journal.append(f"study {decision}d", **value.model_dump())
        statement.save(self.folder / "studies" / study / "decision.json")
        return value


def check_digest(offered: StudyProtocol, digest: str) -> None:
    """Raise ConsentError unless ``digest`` begins that of the protocol with 8 letters or more."""
    study, said = offered.study, digest.strip().lower()
    read = f"Read it with `gliofed-site plan DIR {study}`, which prints its digest, and approve "
    read += f"that: `gliofed-site approve DIR {study} --digest DIGEST --by NAME`."
    if len(said) < _DIGEST_LETTERS:
        raise ConsentError(
            f"{study} was not approved: an approval names the digest of the protocol that was "
            f"read, its first {_DIGEST_LETTERS} letters or more.",
            do=read,
            code="digest",
        )
    if not offered.digest.startswith(said):
        raise ConsentError(
            f"{study} was not approved: the protocol that lies here, version {offered.version}, "
            f"does not have the digest {said[:16]}. It may have been amended since you read it.",
            do=read,
            code="digest",
        )


def _password(path: Path) -> str:
    """Return the first line of ``path``, which its owner alone may read; raise StateError."""
    try:
        mode = path.stat().st_mode
        password = path.read_text(encoding="utf-8").split("\n", 1)[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise StateError(
            f"The proxy's password in {path} cannot be read: {why}.",
            do="Correct proxy_password_file in site.toml.",
            code="proxy",
        ) from None
    if mode & 0o077:
        raise StateError(
            f"Others than its owner may read the proxy's password in {path}.",
            do=f"chmod 600 {path}",
            code="proxy",
        )
    return password


def _check_name(folder: Path, name: str) -> None:
    """Raise StateError if the site asked to enrol, or was admitted, under another name.

    Its keys, decisions and rounds are under that one at the coordinator.
    """
    known = [one for one in ("kit.json", "request.json") if (folder / one).exists()]
    if not known:
        return
    try:
        signed = Statement.load(folder / known[0], what="enrolment").body.get("site")
    except (StateError, IdentityError):
        return  # who needs that file says what is wrong with it
    if signed != name:
        raise StateError(
            f"{folder / 'site.toml'} calls this site {name!r}, but its {known[0]} is that of "
            f"{signed!r}: a site's name cannot be changed.",
            do=f"Set name = {json.dumps(signed)} there again. Another name needs a new folder and "
            "an admission of its own: `gliofed-site request`.",
            code="site-name",
        )


def request(
    folder: Path, *, name: str, data: Path | None, make_ledger: Callable[[Path], object]
) -> Site:
    """Make a site's folder with its keys and its enrolment request; raise StateError.

    ``make_ledger`` makes the privacy ledger at a path, before the folder counts as a site's.
    """
    if (folder / "site.toml").exists():
        raise StateError(
            f"{folder} is a site's folder already.",
            do="Its request is in request.json; choose another folder for another site.",
        )
    place = str(data.resolve()) if data else "data"
    try:
        SiteSettings(name=name, data=place)
    except ValidationError:
        raise StateError(
            f"{name!r} cannot be a site's name.",
            do="Use letters, digits, - and _ only, at most 63, beginning with a letter or digit.",
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    identity = Identity.create(folder / "keys" / "identity.key")
    node_key = keys.new_node_key(folder / "keys" / "node.key")
    for secret in ("superexec.secret", "patients.key"):
        write_secret(folder / "keys" / secret, secrets.token_hex(32).encode())
    wanted = Request(
        site=name,
        identity_key=identity.public,
        node_key=node_key,
        version=version("gliofed"),
    )
    sign_request(wanted, identity).save(folder / "request.json")
    make_ledger(folder / "ledger.sqlite")
    # A JSON string is a TOML string: a quote or a backslash in a path stays what it is.
    text = TEMPLATE.format(name=json.dumps(name), data=json.dumps(place, ensure_ascii=False))
    write_bytes(folder / "site.toml", text.encode())
    site = Site.open(folder)
    site.journal.append("site made", site=name, key=identity.public)
    return site


def join(site: Site, path: Path, *, coordinator: str | None = None) -> Kit:
    """Take the kit at ``path``; ``coordinator`` is the fingerprint that it must have, if known."""
    statement = Statement.load(path, what="site kit")
    kit = open_kit(statement, identity_key=site.identity.public)
    if kit.site != site.name:
        raise IdentityError(f"The kit is for {kit.site}, this site is {site.name}.")
    if coordinator is not None and fingerprint(kit.coordinator_key) != coordinator:
        raise IdentityError(
            f"The kit is signed by {fingerprint(kit.coordinator_key)}, not by {coordinator}.",
            do="Do not use it: ask the coordinator by telephone who sent it.",
        )
    path = site.folder / "kit.json"
    if path.exists() and site.kit.coordinator_key != kit.coordinator_key:
        raise IdentityError(
            f"{site.name} belongs to the consortium {site.kit.consortium} already.",
            do="Make another folder with `gliofed-site request` for another consortium.",
        )
    site.journal.append(
        "consortium joined", consortium=kit.consortium, key=kit.coordinator_key, address=kit.address
    )
    write_bytes(site.folder / "ca.crt", kit.ca_certificate.encode())
    write_json(path, statement.to_dict())
    return kit
