"""What may change in the protocol of a study that runs, and what may not.

An amendment is a whole protocol again, of the same study, which names the digests of all versions
before it. Signed as the first was, it needs each hospital's new approval. The rounds go on where
they were, and so does the privacy ledger: it is the same study, and its caps count over all
versions. So nothing may change that the weights, the scores or the patients' preparation depend
on, and nothing may cost a patient more than was approved before: for that there are new studies.

Pure. Out of scope: who signs (``common.trust.coordinator_charter``), when it takes force
(``server.rounds.round_loop``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from common.errors import ProtocolError
from common.study.protocol import StudyProtocol

FREE: Final = frozenset(
    {
        "title",
        "expires",
        "rounds",
        "evaluate_every",
        "training.local_steps",
        "training.crops_per_patient",
        "training.foreground_probability",
        "training.augmentation",
        "training.loss",
        "training.learning_rate",
        "training.schedule",
        "training.warmup_steps",
        "training.patients_per_step",
        "training.proximal_mu",
        "aggregation.weights",
        "aggregation.quorum",
        "aggregation.quorum_weight",
        "aggregation.deadline_s",
        "aggregation.deadline_slack",
        "aggregation.late_rounds",
        "aggregation.buffer",
        "aggregation.server_learning_rate",
        "privacy.clipping_norm",
    }
)
"""What an amendment may set anew."""

LOWER: Final = frozenset({"privacy.max_epsilon", "privacy.sampling_rate"})
"""What it may lower only."""

HIGHER: Final = frozenset({"privacy.noise_multiplier", "privacy.dice_noise_multiplier"})
"""What it may raise only."""

_LINEAGE: Final = "supersedes"
_NEW_STUDY: Final = "Leave these as they are, or publish a new study for them."


def amended(old: StudyProtocol, draft: StudyProtocol) -> StudyProtocol:
    """Return ``draft`` as the version that follows ``old``; raise ProtocolError if it may not."""
    new = draft.model_copy(update={_LINEAGE: (*old.supersedes, old.digest)})
    check_amendment(old, new)
    if not any(changes(old, new)):
        raise ProtocolError(
            f"The amendment of {new.study} changes nothing.",
            do="There is nothing to approve.",
            code="amendment",
        )
    return new


def check_amendment(old: StudyProtocol, new: StudyProtocol) -> None:
    """Raise ProtocolError unless ``new`` is a later version of ``old`` that changes what it may."""
    if new.study != old.study or new.supersedes[: old.version] != (*old.supersedes, old.digest):
        raise ProtocolError(
            f"The protocol of {new.study}, version {new.version}, does not follow version "
            f"{old.version} of {old.study}.",
            do="Ask the coordinator which version is in force.",
            code="amendment",
        )
    told = (_wrong(key, before, after) for key, (before, after) in changes(old, new))
    wrong = [words for words in told if words]
    if wrong:
        raise ProtocolError(
            f"An amendment of {new.study} cannot do this:\n" + "\n".join(f"  {w}" for w in wrong),
            do="\n" + _NEW_STUDY,
            code="amendment",
        )


def changes(old: StudyProtocol, new: StudyProtocol) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield each key that differs, as ``training.local_steps``, and both values."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in sorted(before.keys() | after.keys()):
        if key != _LINEAGE and before.get(key) != after.get(key):
            yield key, (before.get(key), after.get(key))


def _wrong(key: str, before: Any, after: Any) -> str:
    """Return why ``key`` may not change so, or an empty text."""
    told = f"{key}: {before} would become {after}"
    if key in FREE:
        return ""
    if key in LOWER:
        return "" if after < before else f"{told}; it may only become smaller"
    if key in HIGHER:
        return "" if after > before else f"{told}; it may only become larger"
    if key == "reports":
        return "" if set(after) < set(before) else f"{told}; reports may only become fewer"
    return told


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, by dotted keys; the sites' weights stay one value."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict) and prefix + key != "aggregation.weights":
            found |= _flat(one, f"{prefix}{key}.")
        else:
            found[prefix + key] = one
    return found
