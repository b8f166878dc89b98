"""The report of a segmentation for a clinician, as a page (HTML) and as a sheet (PDF).

``content`` says what is in it, in the order in which it is read; the other two only show it. Not
here: the report inside DICOM (``client.clinic.dicom_results``).
"""
