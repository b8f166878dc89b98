"""DICOM out: what the clinic found, as objects that a PACS and its viewers understand.

The second door to pydicom and highdicom; ``client.imaging.dicom`` is the first. Every object lies
in the study of the series that was segmented and takes patient and study from that series' public
headers; a private tag is never copied. Each says that it is for research use and which model, with
which weights, made it.

    written        all objects of one result, into its folder
    source         the series that was segmented: its headers, and which frame is which slice
    identity       which model made an object, and how an object says so
    segmentation   the mask: a binary segmentation with coded segments
    measurements   volumes and diameters: a structured report, TID 1500
    uncertainty    how unsure each voxel is: a parametric map
    document       the report for people: an encapsulated PDF
"""
