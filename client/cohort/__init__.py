"""The hospital's cohort: which patients, which scans, and who trains, validates and tests.

``case_discovery`` finds the cases of a folder in any layout; ``case_assembly`` says why one is not
usable; ``patient_split`` keeps each patient in one part. ``series_decisions`` remembers which DICOM
series a person took for which sequence, ``reviewed_cases`` are those that a clinician accepted or
corrected. ``quality`` says whether the cohort is fit to train on.

Not here: voxels (``client.imaging``).
"""
