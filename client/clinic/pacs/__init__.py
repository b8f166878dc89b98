"""To and from a PACS: DICOMweb, and DIMSE for archives that have no DICOMweb.

Each is the one door to its library. Not here: what the DICOM objects hold
(``client.clinic.dicom_results``).
"""
