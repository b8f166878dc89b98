"""Which sequence a series is, from its technical facts: a role, a confidence, reasons in words.

Two witnesses are heard: what the scanner did (times, pulses, contrast agent) and what a person
typed. Where both agree the confidence is high; where they contradict each other nothing is
guessed. Of contrast the name comes first: an agent may be recorded for the whole examination. The
numbers are weights of rules, ordered by how much they can be relied on; they were not fitted to
data and are no probabilities. Pure.

The ranges of the times hold for 0.064 to 3 T. They follow how each contrast comes about (Bernstein,
King and Zhou, "Handbook of MRI pulse sequences", 2004, chapters 14 to 17), with room for what
vendors' own protocols do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from client.imaging.dicom import contrast_words, series_description
from client.imaging.dicom.contrast_words import Contrast
from client.imaging.dicom.series_facts import Facts

SURE: Final = 0.7
"""Below this a series is not taken for a sequence unless a person says so."""

_AGREE: Final = 0.95
_PHYSICS: Final = 0.8
_GRADIENT: Final = 0.65  # of a short gradient echo without a name: it may be anything
_WORDS: Final = 0.8
_CONFLICT: Final = 0.4
_UNMARKED: Final = 0.9
_CONTRADICTED: Final = 0.98
_DOUBTFUL: Final = 0.5
_COMPUTED: Final = 0.9
_RECORDED: Final = "a contrast agent is recorded"
_LEAST_EXTENT_MM: Final = 80.0
_HEAD: Final = ("", "HEAD", "BRAIN", "SKULL", "HEADNECK", "HEADANDNECK", "KOPF", "SCHAEDEL")
_BODY: Final = ("SPINE", "NECK", "CHEST", "ABDOMEN", "PELVIS", "KNEE", "BREAST", "HEART", "LIVER")
_NO_AGENT: Final = (
    "",
    "NO",
    "NONE",
    "N",
    "0",
    "NEIN",
    "NON",
    "WITHOUT",
    "NIL",
    "OHNE",
    "NOT GIVEN",
)
_IMAGE_TYPES: Final = {
    "LOCALIZER": "a localiser", "SCOUT": "a localiser", "MIP": "a projection",
    "MNIP": "a projection", "MINIP": "a projection", "PROJECTION IMAGE": "a projection",
    "SUB": "a subtraction", "SUBTRACTION": "a subtraction", "SUBTRACT": "a subtraction",
    "ADC": "diffusion", "ADC_UNSPECIFIED": "diffusion", "DIFFUSION": "diffusion",
    "TRACEW": "diffusion", "TRACE": "diffusion", "FA": "diffusion", "TENSOR": "diffusion",
    "PERFUSION": "perfusion", "CBF": "perfusion", "CBV": "perfusion", "RCBF": "perfusion",
    "RCBV": "perfusion", "MTT": "perfusion", "TTP": "perfusion", "ASL": "perfusion",
    "SWI": "susceptibility or T2*", "FMRI": "functional", "MOSAIC": "functional",
    "P": "a phase image", "PHASE": "a phase image", "PHASE MAP": "a phase image",
    "R": "a real or imaginary part", "I": "a real or imaginary part",
    "REAL": "a real or imaginary part", "IMAGINARY": "a real or imaginary part",
    "FAT": "a fat image", "T1 MAP": "a map or another kind of contrast",
    "T2 MAP": "a map or another kind of contrast", "T1_MAP": "a map or another kind of contrast",
    "T2_MAP": "a map or another kind of contrast", "SCREEN SAVE": "a report or screenshot",
    "CSA REPORT": "a report or screenshot", "CSAPARALLEL": "a report or screenshot",
    "VXTL STATE": "a report or screenshot",
}  # fmt: skip
_REFORMATS: Final = ("MPR", "CSA MPR", "REFORMATTED", "RESAMPLED", "CPR", "3D RENDER")


@dataclass(frozen=True)
class Verdict:
    """What a series was taken for.

    ``role`` is one of ``common.regions.MODALITIES`` or ""; ``left_out`` says why a series takes no
    part at all. ``marked`` is whether anything says that contrast was given or not, ``recorded``
    whether only the header's record of an agent says so, which may be that of the whole
    examination; ``computed`` whether the series was computed from another.
    """

    role: str = ""
    confidence: float = 0.0
    reasons: tuple[str, ...] = ()
    left_out: str = ""
    marked: bool = False
    computed: bool = False
    recorded: bool = False


def weigh(facts: Facts) -> Verdict:
    """Return which sequence a series with ``facts`` is."""
    text = series_description.plain(f"{_typed(facts)} {facts.sequence}")
    if reason := _left_out(facts, text):
        return Verdict(left_out=reason)
    kind, confidence, reasons = _agreed(facts)
    if kind in ("", "PD", "T2*", "STIR"):
        if kind and confidence >= _PHYSICS:
            return Verdict(left_out=f"is {kind}: {reasons[0]}")
        return Verdict(reasons=reasons)
    computed = _is_computed(facts, text)
    if computed:
        confidence *= _COMPUTED
        reasons = (*reasons, "it was computed from other images")
    if kind != "T1":
        role = {"T2": "t2w", "FLAIR": "t2f"}[kind]
        return Verdict(role, round(confidence, 3), reasons, computed=computed)
    enhanced, factor, said = _enhanced(facts)
    return Verdict(
        "t1c" if enhanced else "t1n",
        round(confidence * factor, 3),
        (*reasons, said),
        marked=factor not in (_UNMARKED, _DOUBTFUL),
        computed=computed,
        recorded=said == _RECORDED,
    )


def _left_out(facts: Facts, text: str) -> str:
    if facts.modality != "MR" and not facts.secondary_capture:
        return f"is {facts.modality or 'of no modality'}, not MR"
    if facts.secondary_capture:
        return "is a report or screenshot (secondary capture)"
    if facts.burned_in:
        return "has text burned into its pixels"
    for one in facts.image_type[2:]:
        letter = one[0] if one[1:2] == "_" else ""  # Philips: M_FFE, P_FFE, R_SE
        if reason := _IMAGE_TYPES.get(one) or _IMAGE_TYPES.get(letter):
            return f"is {reason} (image type {one})"
    if facts.orientations > 1:
        return f"holds slices of {facts.orientations} orientations, as a localiser does"
    if "EP" in facts.scanning:
        return "is echo-planar: diffusion, perfusion or functional"
    if reason := series_description.excluded(text):
        return f"is {reason} by its description"
    if any(part in facts.body_part for part in _BODY) and facts.body_part not in _HEAD:
        return f"shows another part of the body ({facts.body_part})"
    if 0 < facts.extent_mm < _LEAST_EXTENT_MM:
        return f"covers only {facts.extent_mm:.0f} mm of the head"
    return ""


class _Physics(NamedTuple):
    """The weighting that the times make, "" when they do not tell, and why.

    ``alone`` is the confidence where no name is given; ``odd`` is whether the times are known and
    fit nothing, which speaks against any name.
    """

    kind: str
    why: str
    alone: float = _PHYSICS
    odd: bool = False


def _physics(facts: Facts) -> _Physics:
    tr, te, ti = facts.tr, facts.te, facts.ti or 0.0
    if tr is None or te is None:
        return _Physics("", "repetition and echo time are not both given")
    times = f"TR {tr:.0f}, TE {te:.3g}" + (f", TI {ti:.0f}" if ti else "") + " ms"
    gradient = "GR" in facts.scanning and "SE" not in facts.scanning
    inverted = ti > 0
    if inverted and te >= 60 and ti >= 1200 and tr >= 3000:
        return _Physics("FLAIR", f"{times}: long echo, fluid nulled")
    if inverted and 60 <= ti <= 300 and tr >= 1500 and not gradient and te >= 20:
        return _Physics("STIR", f"{times}: fat nulled")
    if gradient and te >= 14 and tr < 3000:
        return _Physics("T2*", f"{times}: gradient echo with a late echo")
    prepared = inverted and 200 <= ti <= 1400 and tr <= (7000 if gradient else 4000)
    if te < 30 and prepared:
        return _Physics("T1", f"{times}: short echo, inverted")
    if te < 30 and tr <= 1500:
        alone = _GRADIENT if gradient else _PHYSICS
        return _Physics("T1", f"{times}: short echo and repetition", alone)
    if te >= 60 and tr >= 1500 and not inverted:
        if "IR" in facts.scanning:
            return _Physics("", f"{times}: inverted, but the inversion time is not given")
        return _Physics("T2", f"{times}: long echo and repetition")
    if te < 40 and tr > 1500 and not inverted and not gradient:
        return _Physics("PD", f"{times}: short echo, long repetition")
    return _Physics("", f"{times} fit no sequence", odd=True)


def _named(facts: Facts) -> set[str]:
    """Return what the description names; the sequence only where it names nothing."""
    typed = series_description.weightings(series_description.plain(_typed(facts)))
    return typed or series_description.weightings(series_description.plain(facts.sequence))


def _typed(facts: Facts) -> str:
    """Return what a person called the series. The protocol may be that of the whole examination
    (GE: "brain tumour w/wo contrast, perfusion") and counts only where nothing else is said.
    """
    return facts.description or facts.protocol


def _agreed(facts: Facts) -> tuple[str, float, tuple[str, ...]]:
    """Return the kind that both witnesses support, its confidence and the reasons."""
    physics, named = _physics(facts), _named(facts)
    kind, why = physics.kind, physics.why
    said = f"its description says {' and '.join(sorted(named))}"
    if not named:
        return kind, physics.alone if kind else 0.0, (why,)
    if kind in named:
        return kind, _AGREE, (why, said)
    if kind in ("T2*", "STIR"):
        return kind, _PHYSICS, (why, said)
    if kind == "FLAIR" and named == {"T2"}:  # FLAIR is T2-weighted; its name may say no more
        return kind, _PHYSICS, (why, said)
    if kind == "T2" and named == {"FLAIR"} and facts.ti is None:
        return "FLAIR", _WORDS, (said, f"{why}; the inversion time is not given")
    if kind:
        return sorted(named)[0], _CONFLICT, (f"{why}: {kind}", f"but {said}")
    if len(named) == 1:
        return next(iter(named)), _CONFLICT if physics.odd else _WORDS, (said, why)
    return "", 0.0, (said, why)


def _enhanced(facts: Facts) -> tuple[bool, float, str]:
    """Return whether contrast was given, by how much that lowers the confidence, and why."""
    agent = facts.contrast.strip()
    given = agent.upper() not in _NO_AGENT
    said = contrast_words.contrast(_typed(facts))
    perhaps = said is Contrast.PERHAPS and not given
    if perhaps or said in (Contrast.BOTH, Contrast.UNCLEAR):
        return True, _DOUBTFUL, f"described {said.value}"
    if said in (Contrast.NOTHING, Contrast.PERHAPS):
        if given:
            return True, 1.0, _RECORDED
        if agent:
            return False, 1.0, "no contrast agent was given, it says"
        return False, _UNMARKED, "nothing says that contrast was given"
    typed = said is Contrast.WITH
    if agent and typed != given:
        return typed, _CONTRADICTED, f"described as {said.value}, recorded otherwise"
    return typed, 1.0, f"described as {said.value}" + (" and so recorded" if given else "")


def _is_computed(facts: Facts, text: str) -> bool:
    """Say whether the series was computed; "mpr" in an original's name is short for MPRAGE."""
    if facts.image_type:
        return "DERIVED" in facts.image_type or any(one in _REFORMATS for one in facts.image_type)
    return series_description.reformatted(text)
