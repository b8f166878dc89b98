"""DICOM out: what the clinic found, as objects that a PACS and its viewers understand.

The second door to pydicom and highdicom; ``client.imaging.dicom`` is the first. Every object lies
in the study of the series that was segmented and takes patient and study from that series' public
headers; a private tag is never copied. Each says that it is for research use and which model, with
which weights, made it::

    writer             all objects of one result, into its folder
    source_series      the series that was segmented: its headers, and which frame is which slice
    model_identity     which model made an object, and how an object says so
    segmentation       the mask: a binary segmentation with coded segments
    structured_report  volumes and diameters: TID 1500
    parametric_map     how unsure each voxel is
    encapsulated_pdf   the report for people
"""
