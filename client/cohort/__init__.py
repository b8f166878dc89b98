"""The hospital's cohort: which patients, which scans, and who trains, validates and tests."""

from client.cohort.findings import Refusal
from client.cohort.reading import Cohort, Decide, read_case, read_cohort, read_studies, undecided
from client.cohort.splits import Split, split
from client.imaging.case import Case, Image

__all__ = [
    "Case",
    "Cohort",
    "Decide",
    "Image",
    "Refusal",
    "Split",
    "read_case",
    "read_cohort",
    "read_studies",
    "split",
    "undecided",
]
