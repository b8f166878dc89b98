"""What times and words make of a series, and when nothing is guessed."""

from __future__ import annotations

import pytest

from client.imaging.dicom.contrast_words import Contrast, contrast
from client.imaging.dicom.sequence_recognition import SURE, weigh
from client.imaging.dicom.series_facts import Facts

SAYS_CONTRAST: dict[bool | None, list[str]] = {
    True: [
        "T1WI+C", "C+T1", "T1 SE p.KM", "CE_T1", "T1 Gd pre-op", "APOS CONTRASTE", "c/mdc",
        "T1 post", "T1 +C", "T1 C+", "T1+Gd", "T1w_km", "T1 nach KM", "T1 mit Kontrastmittel",
        "T1ce", "T1GD", "t1c", "apres gado", "après injection", "con mdc", "dopo mdc",
        "con contraste", "com contraste", "pós contraste", "pos gadolinio", "na gadolinium",
        "met contrast", "造影後", "T1 増強", "T1增强", "CE T1", "enhanced", "POST-GAD", "T1 p.KM",
        "T1 ILAÇLI", "T1 z kontrastem", "T1 s kontrastem", "T1 с контрастом", "T1 после контраста",
        "T1 Dotagraf", "AX T1 POST PRE-OP", "T1 pre-op post Gd", "T1 w contrast w/o fs",
        "T1 fs mit KM", "T1 post i.v. Kontrast", "T1 tra +K", "T1 PO I.V.", "AX T1 FS GAD/C+",
    ],
    False: [
        "T1 simple", "PRE-CONTRASTE", "s/mdc", "T1 vor KM", "T1 native pre contrast",
        "T1 pre", "T1 nativ", "T1 ohne KM", "T1 o. KM", "w/o contrast", "without gd", "no contrast",
        "non-contrast", "sans injection", "avant gado", "senza mdc", "basale", "sin contraste",
        "sem contraste", "s/c", "zonder contrast", "blanco", "voor contrast", "単純", "造影前",
        "平扫", "pre contrast", "T1 prä KM",
        "T1 ilaçsız", "T1 KONTRAST YOK", "T1 in bianco", "T1 à blanc", "T1 natif",
        "T1 FØR KONTRAST",
        "T1 fara contrast", "T1 без контраста", "T1 до контраста", "T1 нативная", "AX T1 W-O GAD",
        "T1 s contraste", "T1 mit FS ohne KM", "T1 vKM", "T1 -Gadovist", "KM: nein T1",
    ],
    None: [
        "T1 tra", "posterior fossa", "T1 post op", "T1 pre-op", "T1COR", "T1 CUBE", "sagittal",
        "t1_mprage_sag_p2_iso", "T1 post Chemotherapie", "T1 post RT", "MPRAGE w/ GRAPPA",
        "T1 basal ganglia",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "given"), [(text, given) for given, texts in SAYS_CONTRAST.items() for text in texts]
)
def test_words_for_contrast_are_known(text: str, given: bool | None) -> None:
    said = {True: Contrast.WITH, False: Contrast.WITHOUT, None: Contrast.NOTHING}
    assert contrast(text) is said[given]


@pytest.mark.parametrize(
    "text",
    [
        "T1 ohne und mit KM",
        "T1 w/o and w contrast",
        "pre T1 post",
        "T1 sin/con contraste",
        "T1 natif et gado",
        "T1 vor/nach KM",
    ],
)
def test_words_for_both_are_heard_as_both(text: str) -> None:
    assert contrast(text) is Contrast.BOTH


def facts(description: str = "", **more: object) -> Facts:
    plain = {"shape": (16, 16), "spacing_mm": (12.0, 12.0, 12.0), "slices": 12}
    return Facts(**{"description": description, **plain, **more})


T1 = {"tr": 500.0, "te": 10.0, "scanning": ("SE",)}
T2 = {"tr": 5000.0, "te": 100.0, "scanning": ("SE",)}
FLAIR = {"tr": 9000.0, "te": 100.0, "ti": 2500.0, "scanning": ("SE", "IR")}
TELL = {
    # what is known, role, sure enough to be taken unasked
    "times alone": (facts(**T2), "t2w", True),
    "words alone": (facts("AX FLAIR"), "t2f", True),
    "times against words": (facts("AX T2", **T1), "t2w", False),
    "words that name two": (facts("T1 or T2 ax"), "", False),
    "no times, no words": (facts("series 7"), "", False),
    "T1 FLAIR by times": (facts("T1 FLAIR", tr=2400.0, te=20.0, ti=900.0), "t1n", True),
    "T2 FLAIR": (facts("T2 FLAIR", **FLAIR), "t2f", True),
    "FLAIR named T2 only": (facts("t2_tirm_tra", **FLAIR), "t2f", True),
    "an agent, unnamed": (facts("T1 tra", contrast="Gadovist", **T1), "t1c", True),
    "no agent, it says": (facts("T1 tra", contrast="NONE", **T1), "t1n", True),
    "words against the record": (facts("T1 ohne KM", contrast="Gadovist", **T1), "t1n", True),
    "a whole examination's protocol": (
        facts("Ax T1", protocol="BRAIN W/WO CONTRAST PERFUSION", **T1),
        "t1n",
        True,
    ),
    "with and without": (facts("T1 ohne und mit KM", **T1), "t1c", False),
    "a short gradient echo without a name": (
        facts("x", tr=400.0, te=5.0, scanning=("GR",)),
        "t1n",
        False,
    ),
    "MPRAGE in short": (
        facts("t1_mpr_ns_sag", image_type=("ORIGINAL", "PRIMARY", "M"), **T1),
        "t1n",
        True,
    ),
    "Philips' letters before": (facts("eT2W_TSE", **T2), "t2w", True),
    "computed": (facts("T1 MPR", image_type=("DERIVED", "SECONDARY", "M"), **T1), "t1n", True),
}


@pytest.mark.parametrize("name", TELL)
def test_a_series_is_told(name: str) -> None:
    known, role, sure = TELL[name]
    verdict = weigh(known)
    assert verdict.role == role
    assert (verdict.confidence >= SURE) == sure
    assert verdict.reasons
    assert not verdict.left_out


LEFT_OUT = {
    "CT": (facts(modality="CT"), "CT, not MR"),
    "secondary capture": (facts("T1", secondary_capture=True, **T1), "secondary capture"),
    "burned-in text": (facts("T1", burned_in=True, **T1), "burned"),
    "several orientations": (facts("T1", orientations=3, **T1), "localiser"),
    "a slab": (facts("T2 ax", shape=(16, 16), spacing_mm=(9, 9, 2), slices=12, **T2), "24 mm"),
    "a spine": (facts("T2 sag", body_part="CSPINE", **T2), "another part"),
    "a subtraction": (facts("T1 sub", **T1), "subtraction"),
    "a phase image": (facts("T1", image_type=("ORIGINAL", "PRIMARY", "P"), **T1), "phase"),
    "a Philips phase image": (facts("T1", image_type=("ORIGINAL", "PRIMARY", "P_FFE")), "phase"),
    "a fat image": (facts("t1_vibe_dixon_tra_F", **T1), "fat"),
    "ADC": (facts("ax", image_type=("DERIVED", "PRIMARY", "ADC"), **T2), "diffusion"),
    "PD": (facts("PD tra", tr=3000.0, te=15.0, scanning=("SE",)), "PD"),
    "T2*": (facts("T2 tra", tr=600.0, te=20.0, scanning=("GR",)), "T2*"),
    "STIR": (facts("T2 tirm cor", tr=4000.0, te=60.0, ti=150.0, scanning=("SE", "IR")), "STIR"),
    "ADC in Chinese": (facts("ADC图", **T2), "diffusion"),
    "echo-planar": (facts("T2", tr=4000.0, te=90.0, scanning=("EP", "SE")), "echo-planar"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_anatomical_sequence_is_left_out(name: str) -> None:
    known, why = LEFT_OUT[name]
    verdict = weigh(known)
    assert verdict.role == ""
    assert why in verdict.left_out


def test_no_reason_holds_what_a_person_typed() -> None:
    """Reasons are shown and kept, and a description may hold a name."""
    for known, *_ in TELL.values():
        typed = facts(f"{known.description} Erika Muster", contrast="given by Dr. Muster", **T1)
        assert "muster" not in str(weigh(typed)).lower()
