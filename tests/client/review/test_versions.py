"""A review is there whole or not at all, whatever moment the process dies; changes are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.review.versions import RECORD, Versions
from common.errors import StateError


def fill(folder: Path) -> None:
    (folder / "segmentation.nii.gz").write_bytes(b"mask")


def test_reviews_are_numbered_and_logged(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "reviews")
    assert (versions.numbers, versions.next) == ([], 1)
    assert versions.save({"decision": "accepted"}, fill, by="Dr. Tamm") == 1
    assert versions.save({"decision": "corrected"}, fill, by="Dr. Kreuz") == 2
    again = Versions(tmp_path / "reviews")
    assert again.numbers == [1, 2]
    assert [one.facts["by"] for one in again.log.entries()] == ["Dr. Tamm", "Dr. Kreuz"]
    names = sorted(path.name for path in again.place(1).iterdir())
    assert names == [RECORD, "segmentation.nii.gz"]


def test_a_review_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    versions = Versions(tmp_path)

    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(StateError, match="disk is full"):
        versions.save({}, full)
    assert list(tmp_path.iterdir()) == []
    assert versions.save({}, fill) == 1


def test_killed_before_the_log_it_is_gone(tmp_path: Path) -> None:
    partial = tmp_path / ".0001.partial"
    partial.mkdir()
    fill(partial)
    versions = Versions(tmp_path)
    assert (versions.numbers, partial.exists()) == ([], False)


def test_killed_after_the_log_it_is_finished(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    versions.save({}, fill)
    versions.place(1).rename(tmp_path / ".0001.partial")
    again = Versions(tmp_path)
    assert again.numbers == [1]
    assert (again.place(1) / "segmentation.nii.gz").read_bytes() == b"mask"


@pytest.mark.parametrize("change", ["mask", "record", "gone"])
def test_a_changed_review_is_refused(tmp_path: Path, change: str) -> None:
    versions = Versions(tmp_path)
    versions.save({}, fill)
    place = versions.place(1)
    if change == "mask":
        (place / "segmentation.nii.gz").write_bytes(b"another")
    elif change == "record":
        (place / RECORD).write_text("{}")
    else:
        (place / "segmentation.nii.gz").unlink()
    with pytest.raises(StateError, match="is not the one that was saved") as caught:
        Versions(tmp_path)
    assert caught.value.code == "review-changed"
