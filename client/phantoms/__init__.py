"""Synthetic hospitals for demonstrations, pre-training and tests.

Phantoms are made, not measured: the average brain of many volunteers, deformed, with a simulated
glioma, imaged by a simulated scanner. They teach a network what a tumour looks like and let a
federation be rehearsed without a patient. They are no evidence about clinical performance.
"""

from client.phantoms.cases import PhantomCase, make_case, session_count
from client.phantoms.cohort import MARK, VERSION, write_cohort
from client.phantoms.profiles import KINDS, PROFILES, Kind, Profile, Timing

__all__ = [
    "KINDS",
    "MARK",
    "PROFILES",
    "VERSION",
    "Kind",
    "PhantomCase",
    "Profile",
    "Timing",
    "make_case",
    "session_count",
    "write_cohort",
]
