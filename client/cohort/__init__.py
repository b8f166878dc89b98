"""The hospital's cohort: which patients, which scans, and who trains, validates and tests."""
