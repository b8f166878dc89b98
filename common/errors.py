"""Every failure that gliofed names, as one tree.

    GliofedError                    exit code
    ├── StateError                  10   a folder or file of ours is missing, damaged or in use
    ├── IdentityError               11   a key or signature does not fit
    ├── ProtocolError               12   a study protocol is invalid
    ├── ConsentError                13   the hospital has not agreed, or its policy forbids
    ├── PrivacyError                14   the privacy budget does not allow it
    ├── CaseError                   15   a patient's images cannot be used as they are
    ├── UpdateError                 16   a message between site and coordinator fails its checks
    ├── FederationError             17   the round or the network failed
    └── ModelError                  18   a model release fails its checks

Exit code 0 is success, 1 an unforeseen failure, 2 wrong usage of a command.

Each error says what happened, to what, and in ``do`` what to do next. ``code`` is the only part
that may leave a hospital: it names the kind of failure and holds nothing about a patient.
"""

from __future__ import annotations

from typing import ClassVar


class GliofedError(Exception):
    """Base of all errors that a user can act on.

    ``message`` says what happened and to what; ``do`` says what to do next; ``code`` is a short
    constant (``case-grid``, ``privacy-cap``) that may be sent to the other side.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, do: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.do = do
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message} {self.do}".strip()


class StateError(GliofedError):
    exit_code = 10
    default_code = "state"


class IdentityError(GliofedError):
    exit_code = 11
    default_code = "identity"


class ProtocolError(GliofedError):
    exit_code = 12
    default_code = "protocol"


class ConsentError(GliofedError):
    exit_code = 13
    default_code = "consent"


class PrivacyError(GliofedError):
    exit_code = 14
    default_code = "privacy"


class CaseError(GliofedError):
    exit_code = 15
    default_code = "case"


class UpdateError(GliofedError):
    exit_code = 16
    default_code = "update"


class FederationError(GliofedError):
    exit_code = 17
    default_code = "federation"


class ModelError(GliofedError):
    exit_code = 18
    default_code = "model"
