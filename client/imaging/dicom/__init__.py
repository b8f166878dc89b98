"""DICOM in: studies found in folders and zip files, each series told apart, its voxels read.

The door in to pydicom and highdicom; ``client.clinic.dicom_results`` is the door out. What passes
it: voxels, geometry, and the technical facts of ``series_facts``; patient and study identify a case
and go no further than that::

    files_and_zips        files and zip members, and which of them are safe to open
    file_scan             every DICOM file of paths and zip files, each header read once
    headers               one file -> instance: where its slices lie and how they were acquired
    studies               instances -> studies and series
    slice_geometry        whether a series is one whole volume, by highdicom's rules
    series_facts          what is known of how a series was acquired
    series_description    which kind of sequence a series' name says, in several languages
    contrast_words        whether the name says that contrast was given: its grammar; pure
    sequence_recognition  facts -> sequence, with a confidence and reasons; pure
    series_choice         which series of a study stand for its sequences; pure
    volume                a series' voxels and affine
"""
