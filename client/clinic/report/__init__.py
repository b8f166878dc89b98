"""The report of a segmentation for a clinician, as a page (HTML) and as a sheet (PDF)."""
