"""Studies named and timed as the vendors' scanners do it; every series must be told right.

The tags follow what public headers, vendors' protocol books and converters' issue trackers show for
each product line; patients, dates and voxels are invented. A role in the table is what a
neuroradiologist would call the series; "" is what no case may use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.imaging.dicom.file_scan import scan
from client.imaging.dicom.sequence_recognition import SURE
from client.imaging.dicom.series_choice import Choice, choose
from client.imaging.dicom.studies import studies
from tests.scanners import write_series

ORIGINAL = ["ORIGINAL", "PRIMARY", "M", "ND"]
Row = tuple[str, str, dict[str, Any]]


def se(tr: float, te: float, **more: Any) -> dict[str, Any]:
    return {"ScanningSequence": "SE", "RepetitionTime": tr, "EchoTime": te, **more}


def ir(tr: float, te: float, ti: float, **more: Any) -> dict[str, Any]:
    return {**se(tr, te, InversionTime=ti, **more), "ScanningSequence": ["SE", "IR"]}


def gr(tr: float, te: float, **more: Any) -> dict[str, Any]:
    return {
        "ScanningSequence": "GR",
        "MRAcquisitionType": "3D",
        "RepetitionTime": tr,
        "EchoTime": te,
        **more,
    }


def kind(*image_type: str) -> dict[str, Any]:
    return {"ImageType": list(image_type)}


GADO = {"ContrastBolusAgent": "Gadovist"}

SIEMENS: list[Row] = [
    ("", "localizer", {**gr(8.6, 4), "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM", "DIS2D"]}),
    ("", "AAHead_Scout_MPR_sag", {**gr(3.15, 1.37), **kind("DERIVED", "PRIMARY", "MPR", "M")}),
    ("t1n", "t1_mprage_sag_p2_iso", gr(2300, 2.98, InversionTime=900, FlipAngle=9,
     SequenceVariant=["SK", "SP", "MP"], SequenceName="*tfl3d1_16ns")),
    ("t2w", "t2_tse_tra_512", se(6000, 99, SequenceName="*tse2d1_19", FlipAngle=150)),
    ("t2f", "t2_spc_da-fl_sag_p2_iso_dark-fluid", ir(5000, 388, 1800, MRAcquisitionType="3D",
     SequenceName="*spcir_278ns")),
    ("", "ep2d_diff_3scan_trace_p2_ADC", {"ScanningSequence": "EP", "RepetitionTime": 5000,
     "EchoTime": 89, "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"]}),
    ("", "t2_swi3d_tra_p2", gr(27, 20, SequenceName="*swi3d1r")),
    ("", "t2_fl2d_tra_hemo", gr(620, 20, FlipAngle=20)),
    ("", "ep2d_perf_p2", {"ScanningSequence": "EP", "RepetitionTime": 1500, "EchoTime": 30}),
    ("t1c", "t1_mprage_sag_p2_iso_KM", gr(2300, 2.98, InversionTime=900, **GADO)),
    ("", "t1_mprage_tra_KM_SUB", {**gr(2300, 2.98, InversionTime=900, **GADO),
     **kind("DERIVED", "SECONDARY", "M", "SUB")}),
]  # fmt: skip
GE: list[Row] = [
    ("", "3-Plane Loc SSFSE", se(1500, 80)),
    ("", "Calibration Scan", gr(150, 2)),
    ("t1n", "Sag T1 FLAIR", ir(2400, 24, 860, ProtocolName="BRAIN TUMOR W/WO PERFUSION")),
    ("t2w", "Ax T2 FRFSE", se(4600, 102, ProtocolName="BRAIN TUMOR W/WO PERFUSION")),
    ("t2f", "Ax T2 FLAIR Propeller", ir(9500, 119, 2350)),
    ("", "Ax SWAN", gr(40, 25)),
    ("", "Ax DWI Asset b1000", {"ScanningSequence": ["EP", "SE"], "RepetitionTime": 8000,
     "EchoTime": 78}),
    ("t1c", "Ax BRAVO +C", gr(8.2, 3.2, InversionTime=450, SequenceVariant=["SS", "SP", "SK"],
     ContrastBolusAgent="YES")),
    ("", "COR MPR T1 POST", {**gr(8.2, 3.2, InversionTime=450, ContrastBolusAgent="YES"),
     **kind("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")}),
    ("", "MIP MRA COW", {**gr(24, 3), **kind("DERIVED", "SECONDARY", "PROJECTION IMAGE")}),
    ("", "Screen Save", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
     **kind("DERIVED", "SECONDARY", "SCREEN SAVE")}),
]  # fmt: skip
PHILIPS: list[Row] = [
    ("", "SURVEY", gr(11, 5)),
    ("", "Ref_SENSE_HEAD", gr(4, 1)),
    ("t1n", "T1W_3D_TFE", gr(8.1, 3.7, FlipAngle=8)),
    ("t2w", "T2W_TSE_DRIVE", se(3000, 80)),
    ("t2f", "3D_Brain_VIEW_FLAIR", ir(4800, 289, 1650, MRAcquisitionType="3D")),
    ("", "VEN_BOLD_HR", gr(18, 26)),
    ("", "dDWI_3b", {"ScanningSequence": "EP", "RepetitionTime": 3000, "EchoTime": 75}),
    ("t1c", "T1W_3D_TFE post gado", gr(8.1, 3.7, FlipAngle=8)),
]  # fmt: skip
CANON: list[Row] = [
    ("", "Locator", gr(5, 2)),
    ("t1n", "SE T1 AX", se(550, 12)),
    ("t2w", "FSE T2 AX", se(4500, 105)),
    ("t2f", "FIR FLAIR AX", ir(10000, 105, 2700)),
    ("", "EPI DWI", {"ScanningSequence": "EP", "RepetitionTime": 6000, "EchoTime": 100}),
    ("", "FE T2* AX", gr(700, 15)),
    ("t1c", "T1強調 造影後", se(550, 12)),
]  # fmt: skip
HITACHI: list[Row] = [
    ("", "位置決め", gr(30, 8)),
    ("t1n", "SE T1 Tra (pre)", se(450, 15)),
    ("t2w", "FSE T2 Tra", se(4000, 96)),
    # this line writes no inversion time
    ("t2f", "FLAIR Tra", se(9000, 110)),
    ("", "3D TOF MRA", gr(23, 6.9)),
    ("t1c", "T1 Tra Gd", se(450, 15)),
]  # fmt: skip
UNITED: list[Row] = [
    ("", "scout", gr(6, 3)),
    ("t1n", "t1_gre_fsp_3d_sag_平扫", gr(7.2, 3.1, FlipAngle=10)),
    ("t2w", "t2_fse_tra", se(4178, 110)),
    ("t2f", "t2_fse_flair_tra", ir(8000, 100, 2400)),
    ("", "epi_dwi_tra_b0_b1000", {"ScanningSequence": "EP", "RepetitionTime": 3000,
     "EchoTime": 75}),
    ("", "swi_3d", gr(30, 20)),
    ("t1c", "t1_gre_fsp_3d_sag_增强", gr(7.2, 3.1, FlipAngle=10)),
]  # fmt: skip
ESAOTE: list[Row] = [
    ("", "SCOUT 3", gr(40, 8)),
    ("t1n", "SE T1 basale", se(650, 22)),
    ("t2w", "FSE T2 assiale", se(3800, 100)),
    ("t2f", "FLAIR coronale", ir(7000, 90, 1600)),
    ("t1c", "SE T1 dopo mdc", se(650, 22)),
]  # fmt: skip
HYPERFINE: list[Row] = [
    ("t1n", "T1 (AXI)", ir(1500, 4.8, 300, SequenceName="T1W_3D_FSE", MRAcquisitionType="3D")),
    ("t2w", "T2 (AXI, Fast)", se(2000, 209, MRAcquisitionType="3D")),
    ("t2f", "FLAIR (AXI)", ir(4000, 166, 1400, MRAcquisitionType="3D")),
    ("t1c", "T1 post contrast (AXI)", ir(1500, 4.8, 300, MRAcquisitionType="3D")),
]  # fmt: skip
FRENCH: list[Row] = [
    ("", "Repérage 3 plans", gr(8, 3)),
    ("t1n", "SAG T1 SE sans injection", se(520, 11)),
    ("t2w", "AX T2 TSE", se(5100, 98)),
    ("t2f", "AX FLAIR", ir(9000, 90, 2500)),
    ("t1c", "AX T1 SE après injection de gadolinium", se(520, 11)),
]  # fmt: skip
SPANISH: list[Row] = [
    ("", "Localizador", gr(8, 3)),
    ("t1n", "T1 axial s/c", se(480, 10)),
    ("t2w", "T2 TSE axial", se(5100, 98)),
    ("t2f", "FLAIR axial", ir(9000, 90, 2500)),
    ("t1c", "T1 axial con contraste (civ)", se(480, 10)),
]  # fmt: skip
PORTUGUESE: list[Row] = [
    ("t1n", "T1 AX SEM CONTRASTE", se(480, 10)),
    ("t2w", "T2 AX", se(5100, 98)),
    ("t2f", "FLAIR AX", ir(9000, 90, 2500)),
    ("t1c", "T1 AX PÓS", se(480, 10)),
]  # fmt: skip
DUTCH: list[Row] = [
    ("t1n", "T1 TSE tra blanco", se(500, 9)),
    ("t2w", "T2 TSE tra", se(4500, 90)),
    ("t2f", "T2 TIRM tra", ir(9000, 86, 2500)),
    ("t1c", "T1 TSE tra na contrast", se(500, 9)),
]  # fmt: skip
GERMAN: list[Row] = [
    ("t1n", "T1 SE tra nativ", se(500, 9)),
    ("", "T2 STIR cor", ir(4000, 60, 150)),
    ("t2w", "PD/T2 Doppelecho", se(3500, 95)),
    ("t2f", "TIRM dark fluid tra", ir(9000, 86, 2500)),
    ("t1c", "T1 SE tra + KM", se(500, 9)),
    ("", "HWS T2 sag", se(3500, 100)),
]  # fmt: skip

VENDORS: dict[str, tuple[str, str, list[Row], bool]] = {
    # manufacturer, model, series, enhanced MR
    "Siemens": ("SIEMENS", "Skyra", SIEMENS, False),
    "Siemens XA": ("Siemens Healthineers", "MAGNETOM Vida", SIEMENS[2:5] + SIEMENS[9:10], True),
    "GE": ("GE MEDICAL SYSTEMS", "SIGNA Premier", GE, False),
    "Philips": ("Philips Medical Systems", "Ingenia", PHILIPS, False),
    "Philips enhanced": ("Philips", "Ingenia Elition X", PHILIPS, True),
    "Canon": ("CANON_MEC", "Vantage Galan", CANON, False),
    "Hitachi": ("Hitachi, Ltd.", "Echelon Oval", HITACHI, False),
    "United Imaging": ("UIH", "uMR 790", UNITED, False),
    "Esaote": ("ESAOTE", "S-scan", ESAOTE, False),
    "Hyperfine": ("Hyperfine", "Swoop", HYPERFINE, False),
    "French": ("SIEMENS", "Aera", FRENCH, False),
    "Spanish": ("GE MEDICAL SYSTEMS", "Optima", SPANISH, False),
    "Portuguese": ("Philips Medical Systems", "Achieva", PORTUGUESE, False),
    "Dutch": ("SIEMENS", "Avanto", DUTCH, False),
    "German": ("SIEMENS", "Sola", GERMAN, False),
}


def study_of(folder: Path, vendor: str) -> Choice:
    maker, model, rows, enhanced = VENDORS[vendor]
    for number, (_, description, values) in enumerate(rows, start=1):
        values = {"ProtocolName": description, **values}
        write_series(
            folder / f"{number}",
            number,
            description,
            enhanced=enhanced,
            Manufacturer=maker,
            ManufacturerModelName=model,
            **values,
        )
    found = scan(sorted(folder.rglob("*.dcm")))
    assert not found.faults
    (study,) = studies(found.instances)
    return choose(study)


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_series_of_a_vendor_is_told_right(tmp_path: Path, vendor: str) -> None:
    rows = VENDORS[vendor][2]
    found = study_of(tmp_path, vendor)
    told = {one.series.name: one.verdict.role if one.used else "" for one in found.judged}
    assert told == {str(number): role for number, (role, *_) in enumerate(rows, start=1)}
    assert not found.missing
    for one in found.judged:
        assert one.why
        assert not one.used or SURE <= one.verdict.confidence <= 1
