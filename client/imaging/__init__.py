"""Images of one patient: what a case is, how it is read, preprocessed for the network and kept.

The same for training and for the clinic, and pinned by a digest. ``preprocessing`` is the whole of
it; ``raw_preprocessing`` with ``bias_field``, ``registration`` and ``brain_extraction`` is for
images as a scanner wrote them; ``missing_sequences`` says which may lack; ``prepared_cache`` keeps
what was prepared; ``voxel_digest`` knows a scan again. DICOM is read in ``dicom``.

Not here: which cases there are (``client.cohort``), and DICOM that is written
(``client.clinic.dicom_results``).
"""
