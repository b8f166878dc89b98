"""DICOM in: studies found in folders and zip files, each series told apart, its voxels read.

The door in to pydicom and highdicom; ``client.clinic.dicom_results`` is the door out. What
passes it: voxels, geometry, and the technical facts of ``client.imaging.dicom.series_facts``;
patient and study identify a case and go no further than that.

    containers   files and zip members, and which of them are safe to open
    headers      one file -> instance: where its slices lie and how they were acquired
    studies      instances -> studies and series
    geometry     whether a series is one whole volume, by highdicom's rules
    words        what descriptions in several languages say
    weighting    facts -> sequence, with a confidence and reasons; pure
    choice       which series of a study stand for its sequences; pure
    volume       a series' voxels and affine
"""
