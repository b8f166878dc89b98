"""The page over HTTP: what is shown, kept and decided, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from client.clinic.result_schema import read_result
from client.clinic.review_outcome import UNREVIEWED
from client.imaging.nifti import read_volume
from client.review.session import Desk
from client.review.versions import Versions
from common.errors import CaseError, StateError
from tests.client.review.conftest import Visit
from tests.reviews import GRIDS, tumour


@pytest.fixture
def page(result: Path, visit: Visit) -> TestClient:
    return visit(Desk(result))


def nifti(labels: np.ndarray, grid: str = "RAS") -> bytes:
    return bytes(nib.Nifti1Image(labels, GRIDS[grid]).to_bytes())


def drawn(voxels: int = 5) -> np.ndarray:
    labels = tumour()
    labels[5 : 5 + voxels, 10, 10] = 3
    return labels


def put(page: TestClient, labels: np.ndarray, known: str | None = None) -> Any:
    known = page.get("/state").json()["sha256"] if known is None else known
    return page.put("/draft", content=nifti(labels), headers={"if-match": f'"{known}"'})


def decide(page: TestClient, decision: str, **changes: str) -> Any:
    words = {"reviewer": "Dr. Tamm", "comment": "", "seen": page.get("/state").json()["sha256"]}
    return page.post("/decision", json={"decision": decision, **words, **changes})


def shown(page: TestClient) -> np.ndarray:
    image = nib.Nifti1Image.from_bytes(page.get("/mask.nii").content)
    return np.asarray(image.dataobj, np.uint8)


def test_the_page_says_what_is_looked_at(page: TestClient) -> None:
    text = page.get("/").text
    for words in (
        "RESEARCH USE ONLY",
        "GF-00001-000",
        "glioma 1.0.0, round 7",
        "FLAIR",
        "own mask",
    ):
        assert words in text
    assert "<script>" not in text
    assert "style=" not in text
    policy = page.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert page.get("/review/review.css").status_code == 200
    image = nib.Nifti1Image.from_bytes(page.get("/images/t1c.nii").content)
    assert np.allclose(image.affine, GRIDS["RAS"])
    assert page.get("/images/segmentation.nii").status_code == 404


def test_a_draft_is_kept_and_outlives_the_server(
    page: TestClient, result: Path, visit: Visit
) -> None:
    answer = put(page, drawn())
    assert answer.status_code == 200
    assert answer.json()["sha256"] == page.get("/state").json()["sha256"]
    again = visit(Desk(result))  # as after a kill: nothing was closed
    assert np.array_equal(shown(again), drawn())
    assert again.get("/state").json()["sha256"] == answer.json()["sha256"]
    put(again, tumour())
    assert list((result / "reviews").glob("draft*")) == []


def test_a_correction_becomes_a_version_beside(page: TestClient, result: Path) -> None:
    before = {path.name: path.read_bytes() for path in result.iterdir() if path.is_file()}
    put(page, drawn())
    done = decide(page, "corrected", comment="A  streak\nmissing").json()
    assert done["number"] == 1
    place = result / "reviews" / "0001"
    assert np.array_equal(read_volume(place / "segmentation.nii.gz", dtype=np.uint8).data, drawn())
    found = read_result(place, do="", code="")
    assert found.review is not None
    edit = found.review.edit
    assert (edit.changed_voxels, edit.labels["ET"].added_voxels) == (5, 5)
    assert edit.labels["ET"].added_ml == pytest.approx(0.04)
    assert edit.labels["NCR"].dice == 1
    assert found.volumes_ml["ET"] == pytest.approx((drawn() == 3).sum() * 0.008, abs=1e-3)
    assert (found.range_ml, found.confidence) == ({}, {})
    assert UNREVIEWED not in found.warnings
    assert found.findings is not None
    report = (place / "report.html").read_text()
    for words in ("Dr. Tamm", "What the reviewer changed", "5 (0.04)", "corrected by a person"):
        assert words in report
    assert before == {p.name: p.read_bytes() for p in result.iterdir() if p.is_file()}
    (entry,) = Versions(result / "reviews").log.entries()
    assert (entry.facts["decision"], entry.facts["changed_voxels"]) == ("corrected", 5)
    assert list((result / "reviews").glob("draft*")) == []


def test_the_next_review_goes_on_from_the_last(
    page: TestClient, result: Path, visit: Visit
) -> None:
    put(page, drawn())
    decide(page, "corrected")
    assert "Opened on review 1: corrected by Dr. Tamm" in page.get("/").text
    later = visit(Desk(result))
    assert np.array_equal(shown(later), drawn())
    assert later.get("/state").json()["opened"] == "1"
    assert decide(later, "accepted", reviewer="Dr. Kreuz").json()["number"] == 2
    found = read_result(result / "reviews" / "0002", do="", code="")
    assert found.review is not None
    assert (found.review.opened, found.review.edit.changed_voxels) == ("1", 5)
    put(later, drawn(9))
    assert decide(later, "rejected", comment="Motion").json()["number"] == 3
    log = Versions(result / "reviews").log.entries()
    said = [one.facts["decision"] for one in log]
    assert said == ["corrected", "accepted", "rejected"]


def test_an_untouched_mask_is_accepted_with_its_ranges(page: TestClient, result: Path) -> None:
    assert decide(page, "accepted").status_code == 200
    found = read_result(result / "reviews" / "0001", do="", code="")
    assert found.range_ml["WT"] == (5.0, 9.0)
    assert "the mask is the model&#39;s own" in (result / "reviews/0001/report.html").read_text()


REFUSED = {
    "no name": ({"reviewer": "  "}, "accepted", "needs a name"),
    "a long name": ({"reviewer": "x" * 65}, "accepted", "needs a name"),
    "a long comment": ({"comment": "x" * 2001}, "accepted", "2001 letters"),
    "no reason": ({}, "rejected", "needs a reason"),
    "nothing changed": ({}, "corrected", "nothing was changed"),
    "no decision": ({}, "approved", "is no decision"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_decision_that_cannot_be_kept_is_said(page: TestClient, result: Path, name: str) -> None:
    changes, decision, words = REFUSED[name]
    answer = decide(page, decision, **changes)
    assert (answer.status_code, words in answer.json()["error"]) == (422, True)
    assert answer.json()["do"]
    assert Versions(result / "reviews").numbers == []


def test_a_changed_mask_is_not_accepted_as_the_models(page: TestClient) -> None:
    put(page, drawn())
    assert "was changed" in decide(page, "accepted").json()["error"]


def test_only_what_was_seen_is_decided_about(page: TestClient, result: Path) -> None:
    seen = page.get("/state").json()["sha256"]
    put(page, drawn())  # another tab
    answer = decide(page, "corrected", seen=seen)
    assert (answer.status_code, "another tab" in answer.json()["error"]) == (409, True)
    assert Versions(result / "reviews").numbers == []


def test_a_second_tab_does_not_overwrite_the_first(page: TestClient) -> None:
    seen = page.get("/state").json()["sha256"]
    assert put(page, drawn(), seen).status_code == 200
    answer = put(page, drawn(9), seen)
    assert (answer.status_code, "another tab" in answer.json()["error"]) == (409, True)
    assert np.array_equal(shown(page), drawn())


def test_another_grid_is_refused_and_the_draft_stays(page: TestClient) -> None:
    put(page, drawn())
    known = {"if-match": f'"{page.get("/state").json()["sha256"]}"'}
    answer = page.put("/draft", content=nifti(drawn(9), "LPS"), headers=known)
    assert (answer.status_code, "lies elsewhere" in answer.json()["error"]) == (422, True)
    assert np.array_equal(shown(page), drawn())


def test_a_body_is_read_to_its_bound(page: TestClient, result: Path) -> None:
    most = Desk(result).most_bytes
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while read < 100 * most:
            read += 65536
            yield bytes(65536)

    assert page.put("/draft", content=endless()).status_code == 413
    assert page.post("/decision", content=b"x" * 70_000).status_code == 413
    assert page.post("/decision", content=b"[]").status_code == 422


def test_who_is_not_let_in_changes_nothing(page: TestClient, result: Path, visit: Visit) -> None:
    del page.headers["x-csrf"]
    assert put(page, drawn()).status_code == 413  # a form, which is never so long
    page.headers["x-csrf"] = "guessed"
    assert put(page, drawn()).status_code == 403
    elsewhere = visit(Desk(result))
    elsewhere.headers["origin"] = "http://evil.example"
    assert put(elsewhere, drawn()).status_code == 403
    elsewhere.cookies.clear()
    for path in ("/state", "/mask.nii", "/images/t1c.nii", "/review/review.js"):
        assert elsewhere.get(path).status_code == 401
    assert elsewhere.get("/state", headers={"host": "evil.example"}).status_code == 421
    assert list((result / "reviews").glob("draft*")) == []


def test_a_full_disk_is_said_and_the_draft_stays(
    page: TestClient, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(page, drawn())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.review.decision.write_report", full)
        answer = decide(page, "corrected")
        assert (answer.status_code, "disk is full" in answer.json()["error"]) == (503, True)
        patch.setattr("common.records.atomic_files.os.fsync", full)
        answer = put(page, drawn(9))
        assert (answer.status_code, "disk is full" in answer.json()["error"]) == (503, True)
    assert Versions(result / "reviews").numbers == []
    assert np.array_equal(shown(page), drawn())
    assert decide(page, "corrected").json()["number"] == 1


def test_killed_between_draft_and_decision(page: TestClient, result: Path, visit: Visit) -> None:
    """A version that was being written is gone; the draft is decided about anew."""
    put(page, drawn())
    partial = result / "reviews" / ".0001.partial"
    partial.mkdir()
    (partial / "segmentation.nii.gz").write_bytes(b"half")
    again = visit(Desk(result))
    assert not partial.exists()
    assert decide(again, "corrected").json()["number"] == 1


def test_images_that_changed_are_refused(page: TestClient, result: Path, tmp_path: Path) -> None:
    path = next((tmp_path / "case").rglob("*-t2w.nii.gz"))
    shutil.copy(next((tmp_path / "case").rglob("*-t2f.nii.gz")), path)
    answer = decide(page, "accepted")
    assert (answer.status_code, "not the one that was" in answer.json()["error"]) == (422, True)
    with pytest.raises(CaseError, match=r"t2w in .* is not the one that was segmented"):
        Desk(result)
    shutil.rmtree(tmp_path / "case")
    with pytest.raises(CaseError, match="not at") as caught:
        Desk(result)
    assert "--case FOLDER" in caught.value.do
    assert "--pacs" not in caught.value.do


def test_a_changed_result_is_refused(result: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"holds no result\.json"):
        Desk(tmp_path)
    path = result / "segmentation.nii.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="is not the file that") as caught:
        Desk(result)
    assert caught.value.code == "review-changed"


def test_a_review_itself_is_not_opened(page: TestClient, result: Path) -> None:
    decide(page, "accepted")
    with pytest.raises(StateError, match="is a review itself"):
        Desk(result / "reviews" / "0001")


def test_a_damaged_draft_is_said(page: TestClient, result: Path) -> None:
    put(page, drawn())
    (draft,) = (result / "reviews").glob("draft*")
    draft.write_bytes(draft.read_bytes()[:60])
    with pytest.raises(CaseError, match=r"draft-.* cannot be read"):
        Desk(result)


def test_the_state_is_json_that_a_page_can_read(page: TestClient) -> None:
    state = page.get("/state").json()
    assert [one["name"] for one in state["sequences"]] == ["t1n", "t1c", "t2w", "t2f"]
    assert [one["value"] for one in state["labels"]] == [1, 2, 3]
    assert state["voxel_ml"] == pytest.approx(0.008)
    assert json.dumps(state)
