"""What the report says, in the order in which it is read; page and sheet both show just this.

A pure function of ``result.json`` and the pictures, so that a report can be made again from a
result's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from client.clinic.ood import Familiarity
from client.clinic.rano_response import BIDIMENSIONAL, VOLUMETRIC, Change
from client.clinic.result_schema import Lesions, Result, computed
from client.clinic.review_outcome import MACHINE, Review
from client.clinic.sequence_importance import Explained
from common.foreign_text import printable
from common.regions import LABEL_NAMES, MODALITY_NAMES

BANNER: Final = (
    "RESEARCH USE ONLY. Made by a program, not reviewed: not for diagnosis or treatment."
)

REVIEWED: Final = (
    "RESEARCH USE ONLY. Made by a program, {decision} by a person: not for diagnosis or treatment."
)

_NAMES: Final = {**LABEL_NAMES, "TC": "tumour core (NCR + ET)", "WT": "whole tumour (all three)"}
_OF: Final = {"ET": "enhancing", "WT": "whole-tumour"}
_ORDER: Final = ("ET", "NCR", "ED", "TC", "WT")
_MOST_LESIONS: Final = 6
_NONE: Final = "–"


@dataclass(frozen=True)
class Table:
    """``numbers`` are the columns that hold numbers: they are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Words:
    """Sentences; ``grave`` are those that a reader must not miss."""

    lines: tuple[str, ...]
    grave: bool = False


@dataclass(frozen=True)
class Picture:
    png: bytes
    says: str


Block = Table | Words | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """``review`` says who reviewed it; without any, page and sheet leave a line to be signed."""

    title: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...]
    banner: str = BANNER
    review: tuple[str, ...] = ()


def content(
    result: Result, *, overview: bytes, doubtful: bytes | None, explained: bytes | None = None
) -> Report:
    """Return the report of a result; ``doubtful`` is None where the model's doubt is not known,
    ``explained`` where no explanation was asked for."""
    date = f"Study of {result.study_date}" if result.study_date else "Study date not in the files"
    there = ", ".join(MODALITY_NAMES[name] for name in result.inputs)
    facts = (
        f"Case: {printable(result.case) or _NONE}",
        f"{date}. Segmented {result.made[:16].replace('T', ' ') or _NONE}.",
        f"Sequences: {there}. Measured on the grid of the {MODALITY_NAMES[result.grid_of]}.",
    )
    review = result.review
    sections = (
        *_unlike(result.familiarity),
        *(() if review is None else (Section("What the reviewer changed", _edit(review)),)),
        Section("Volumes", (_volumes(result), Words(_volume_notes(result)))),
        Section("Lesions and RANO diameters", _lesions(result.findings, result.grid_of)),
        Section("Change against the prior", _change(result.change)),
        Section("Checks of the input", _checks(result)),
        Section(
            "Outlines",
            (
                Picture(overview, "Outlines of the segmentation on axial slices"),
                Words(
                    (
                        "Seen from the feet: R is the patient's right. Dashed: both diameters of "
                        "the largest lesion, on the slice where they were measured.",
                    )
                ),
            ),
        ),
        *(() if doubtful is None else (_doubt(doubtful),)),
        # Of the model's own mask, as is what it says of its doubt.
        *(_explanation(result.explanation, explained) if review is None else ()),
        Section("Model", _model(result)),
    )
    if review is None:
        return Report("Brain tumour segmentation", facts, sections)
    return Report(
        f"Brain tumour segmentation, {review.decision}",
        facts,
        sections,
        REVIEWED.format(decision=review.decision),
        (
            f"{review.decision.capitalize()} by {review.reviewer}, "
            f"{review.time[:16].replace('T', ' ')}. Review {review.number}.",
            f"Comment: {review.comment or _NONE}",
        ),
    )


def _unlike(found: Familiarity | None) -> tuple[Section, ...]:
    """Say first of all that the rest is not to be relied on."""
    if found is None or not found.unlike:
        return ()
    says = tuple(one.says for one in found.unlike)
    return (Section("This scan is unlike what the model learnt from", (Words(says, grave=True),)),)


def _edit(review: Review) -> tuple[Block, ...]:
    edit = review.edit
    where = "" if review.opened == MACHINE else f" It went on from review {review.opened}."
    if not edit.changed_voxels:
        return (Words((f"Nothing: the mask is the model's own.{where}",)),)
    rows = tuple(
        (
            name,
            _NAMES[name],
            f"{one.added_voxels} ({one.added_ml:.2f})",
            f"{one.removed_voxels} ({one.removed_ml:.2f})",
            _NONE if one.dice is None else f"{one.dice:.3f}",
        )
        for name, one in ((name, edit.labels[name]) for name in _ORDER if name in edit.labels)
    )
    head = ("", "Label", "Added, voxels (mL)", "Removed, voxels (mL)", "Dice to the model's")
    line = (
        f"{edit.changed_voxels} voxels ({edit.changed_ml:.2f} mL) have another label than the "
        f"model gave them.{where} Volumes and diameters below are of the reviewed mask; the "
        "model's ranges and expectations are not, and are left out."
    )
    return (Table(head, rows, numbers=(2, 3, 4)), Words((line,)))


def _volumes(result: Result) -> Table:
    ranges = {str(name): ends for name, ends in result.range_ml.items()}
    confidence = {str(name): one for name, one in result.confidence.items()}
    rows = []
    for name in _ORDER:
        ends, expected = ranges.get(name), confidence.get(name)
        rows.append(
            (
                name,
                _NAMES[name],
                f"{result.volumes_ml[name]:.1f}",
                _NONE if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}",
                _NONE if expected is None else f"{expected:.2f}",
            )
        )
    head = ("", "Region", "Volume, mL", "Sure to possible, mL", "Expected Dice")
    if not ranges and not confidence:  # of a mask that a person drew
        return Table(head[:3], tuple(row[:3] for row in rows), numbers=(2,))
    return Table(head, tuple(rows), numbers=(2, 3, 4))


def _volume_notes(result: Result) -> tuple[str, ...]:
    if not result.range_ml and not result.confidence:
        return ()
    calibrated = (
        "calibrated on this site's patients" if result.calibrated else "never calibrated here"
    )
    return (
        "Sure to possible: voxels with a chance above 0.75 to those above 0.25. Expected Dice is "
        f"what the model's own probabilities promise, {calibrated}; 1 is a perfect match.",
    )


def _lesions(found: Lesions | None, grid_of: str) -> tuple[Block, ...]:
    if found is None:
        return (Words(("Not measured.",)),)
    if not found.lesions:
        return (Words(("No lesion of 50 mm³ or more was found.",)),)
    shown = found.lesions[:_MOST_LESIONS]
    rows = tuple(
        (
            str(number),
            one.side or _NONE,
            f"{one.volume_ml:.1f}",
            f"{one.long_mm:.0f} × {one.across_mm:.0f}",
            f"{one.product_mm2:.0f}",
            f"{one.slice} of {one.slices}",
            "yes" if one.measurable else "no",
        )
        for number, one in enumerate(shown, start=1)
    )
    head = ("", "Side", "Volume, mL", "Diameters, mm", "Product, mm²", "Slice", "Measurable")
    kind = _OF[found.of]
    plural = "lesion" if found.count == 1 else "lesions"
    sides = {"both": "on both sides", "midline": "across the midline", None: "side not told"}
    where = sides.get(found.side, f"on the {found.side}")
    more = found.count - len(shown)
    lines = [
        f"{found.count} {kind} {plural}, {where}. Sum of products of the measurable: "
        f"{found.sum_of_products_mm2:.0f} mm²."
        + (f" The {more} smallest are not listed." if more else ""),
        "Longest diameter and the longest at a right angle to it, on axial slices of the "
        f"{MODALITY_NAMES[grid_of]}. Measurable (RANO 2.0): both at least 10 mm, on two slices. A "
        "diameter crosses necrosis; cysts and surgical cavities are not told from it. The side "
        "is by the brain's outline; lobes are not told, as that needs an atlas.",
    ]
    if found.of == "WT":
        lines.insert(0, "Nothing enhances: the whole tumour, as FLAIR shows it, was measured.")
    return (Table(head, rows, numbers=(2, 3, 4)), Words(tuple(lines)))


def _change(found: Change | None) -> tuple[Block, ...]:
    if found is None:
        return (Words(("No earlier result was given (--prior).",)),)
    rows = [
        (
            f"{name}, mL",
            f"{found.volumes_ml[name].before:.1f}",
            f"{found.volumes_ml[name].now:.1f}",
            _percent(found.volumes_ml[name].percent),
        )
        for name in ("ET", "TC", "WT")
        if name in found.volumes_ml
    ]
    if found.sum_of_products_mm2 is not None:
        products = found.sum_of_products_mm2
        rows.append(
            (
                f"Sum of products ({found.of}), mm²",
                f"{products.before:.0f}",
                f"{products.now:.0f}",
                _percent(products.percent),
            )
        )
    if found.lesions is not None:
        rows.append(("Lesions", str(found.lesions[0]), str(found.lesions[1]), ""))
    lines = [
        f"Response category by the numbers alone, of the {found.of}: by volume: "
        f"{found.volumetric or 'not told'} (thresholds {_thresholds(VOLUMETRIC)}); by diameters: "
        f"{found.bidimensional or 'not told'} (thresholds {_thresholds(BIDIMENSIONAL)}). An aid, "
        "no RANO assessment: new lesions, steroids, the patient's state, the smallest earlier "
        "measurement and confirmation are for a person.",
        "The thresholds by volume are those by diameters, carried over to spheres: products that "
        "grow by 25 % or halve belong to volumes of +40 % or −65 %.",
        "That both results are of one patient is for a person to see: gliofed does not check it.",
    ]
    if found.within_ranges:
        lines.append(
            f"The ranges of {', '.join(found.within_ranges)} then and now overlap: their change "
            "may be the model's doubt."
        )
    if not found.same_model:
        lines.append("Another model made the earlier result: a change may be the models'.")
    head = (
        f"Prior: {found.prior_case or found.prior}",
        found.prior_date or "then",
        "now",
        "Change",
    )
    return (Table(head, tuple(rows), numbers=(1, 2, 3)), Words(tuple(lines)))


def _thresholds(ends: tuple[float, float]) -> str:
    return f"{_percent(ends[0], digits=0)}, {_percent(ends[1], digits=0)}"


def _percent(value: float | None, *, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:+.{digits}f}\u00a0%".replace("-", "−")


def _doubt(picture: bytes) -> Section:
    return Section(
        "Where the model is unsure",
        (
            Picture(picture, "Uncertainty of the segmentation on axial slices"),
            Words(
                (
                    "Colour is the doubt about a voxel's label, from 10 of 100; the white line is "
                    "the whole tumour. The model cannot doubt what it never saw.",
                )
            ),
        ),
    )


def _explanation(found: Explained | None, picture: bytes | None) -> tuple[Section, ...]:
    if found is None:
        return ()
    rows = tuple(
        (
            MODALITY_NAMES[sequence],
            *(
                cell
                for region in ("ET", "TC", "WT")
                for cell in (f"{one[region].volume_ml:.1f}", f"{one[region].dice:.2f}")
            ),
        )
        for sequence, one in ((name, dict(regions)) for name, regions in found.without.items())
    )
    head = (
        "Hidden",
        *(f"{name}, {what}" for name in ("ET", "TC", "WT") for what in ("mL", "Dice")),
    )
    shown = (
        "A hidden sequence looks as a missing one does, which the model was trained for."
        if found.hidden_as == "absent"
        else "A hidden sequence has its mean everywhere, which the model was never trained for: "
        "part of the change is its surprise."
    )
    words = Words(
        (
            "Each sequence was hidden in turn and the case predicted again: volumes then, and "
            "their Dice with the segmentation above (1: nothing changed). Colour is how much the "
            "model's probabilities change in a voxel, from 0.1.",
            f"{shown} This is what the model's answer depends on. It is no cause, no finding, and "
            "no check of whether the answer is right.",
        )
    )
    drawn = () if picture is None else (Picture(picture, "Change as each sequence is hidden"),)
    table = Table(head, rows, numbers=(1, 2, 3, 4, 5, 6))
    return (Section("What each sequence mattered to the model", (*drawn, table, words)),)


def _checks(result: Result) -> tuple[Block, ...]:
    steps = preparation_words(result.preparation)
    return (
        Words(result.warnings, grave=True),
        Words(
            (
                *steps,
                *_familiarity(result.familiarity),
            )
        ),
    )


def _familiarity(found: Familiarity | None) -> tuple[str, ...]:
    """Say what was compared, and what could not be; what is unlike stands in the warnings."""
    if found is None:
        return (
            "Whether this scan is unlike all that the model learnt from was not measured: look at "
            "the outlines.",
        )
    general = (
        "The sequences contradict each other, or show more noise than a brain: see above."
        if any(one.code in ("opposite", "double", "noise") for one in found.unlike)
        else "The sequences fit each other as in any brain, and noise does not hide them."
    )
    if found.cohort != "compared":
        why = (
            "the model's card holds no histograms of them"
            if found.cohort == "none"
            else "the noise that protects the patients in the card's histograms hides it"
        )
        return (
            general,
            f"Whether this scan is otherwise unlike those that the model learnt from cannot be "
            f"told: {why}. Look at the outlines.",
        )
    names = {
        "intensity": "intensities",
        "spacing": "size of voxels",
        "volume": "volume of the tumour",
    }
    compared = [
        word for key, word in names.items() if any(one.startswith(key) for one in found.measured)
    ]
    unlike = any(one.code in ("intensities", "spacing", "volume") for one in found.unlike)
    return (
        general,
        f"Compared with the noised histograms of the patients at {found.sites} "
        f"{'site' if found.sites == 1 else 'sites'}: {', '.join(compared)}. "
        + (
            "They are unlike: see above."
            if unlike
            else "Nothing is unlike; a scan may still be unlike in other ways."
        ),
    )


def preparation_words(history: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what was done to the images, a sentence a kind of step."""
    by_step: dict[str, list[Mapping[str, Any]]] = {}
    for record in history:
        by_step.setdefault(str(record.get("step")), []).append(record)
    lines = []
    for record in by_step.get("missing", ()):
        names = ", ".join(MODALITY_NAMES.get(name, name) for name in record["sequences"])
        lines.append(f"Missing: {names}.")
    if by_step.get("n4"):
        names = ", ".join(_named(record) for record in by_step["n4"])
        lines.append(f"Shading was evened out in: {names}.")
    if by_step.get("register"):
        fits = ", ".join(
            f"{_named(one)} (two estimates differ by {one['residual_mm']:.1f} mm)"
            for one in by_step["register"]
        )
        target = MODALITY_NAMES.get(str(by_step["register"][0].get("to")), "reference")
        lines.append(f"Laid over the {target}: {fits}.")
    for record in by_step.get("brain", ()):
        if "volume_ml" in record:
            lines.append(
                f"The brain was found in the {_named(record)}: {record['volume_ml']:.0f} mL."
            )
        else:
            lines.append("The images came without the skull, on one grid.")
    for record in by_step.get("quality", ()):
        least = min(record["covered"].values(), default=1.0)
        lines.append(f"Each sequence shows at least {100 * least:.0f} % of the brain.")
    for record in by_step.get("resample", ()):
        sizes = " × ".join(f"{one:.2g}" for one in record["from_mm"])
        lines.append(f"Voxels of {sizes} mm were read at {record['to_mm']:g} mm.")
    return tuple(lines)


def _named(record: Mapping[str, Any]) -> str:
    name = str(record.get("sequence"))
    return MODALITY_NAMES.get(name, name)


def _model(result: Result) -> tuple[Block, ...]:
    one = result.model
    lines = [
        f"{one.name} {one.version}, round {one.round}. Weights SHA-256 {one.weights_sha256}.",
        *(
            f"Together with {other.name} {other.version}, round {other.round}, weights "
            f"{other.weights_sha256[:16]}."
            for other in result.together_with
        ),
        computed(result),
    ]
    found = result.federation
    if found is None:
        return (Words(tuple(lines)),)
    lines.append(
        f"Trained by {found.consortium or 'a consortium'} at {len(found.sites)} "
        f"{'site' if len(found.sites) == 1 else 'sites'}, "
        + (
            f"with differential privacy (unit: {found.privacy_unit})."
            if found.private
            else "WITHOUT differential privacy."
        )
        + f" Intended use: {found.intended_use}"
    )
    rows = tuple(
        (
            site.site,
            str(site.rounds),
            _NONE if site.epsilon is None else f"{site.epsilon:.2f}",
            _NONE if site.delta is None else f"{site.delta:g}",
        )
        for site in found.sites
    )
    head = ("Site", "Rounds", "Epsilon", "Delta")
    return (Words(tuple(lines)), Table(head, rows, numbers=(1, 2, 3)))
