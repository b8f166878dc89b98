"""The clinic: a released model, one patient's MRI, its mask, report and DICOM objects.

``segment`` computes, ``result_folder`` measures and writes; ``released_model``,
``installed_models`` and ``revoked_models`` say which model may be used; ``ood`` (out of
distribution) warns of a scan that is unlike what the model learnt from, ``uncertainty`` says how
sure a mask is; ``rano_response`` compares with an earlier result; ``result_verification`` checks a
result later.

The rooms in it: ``pacs`` (fetch and store), ``dicom_results``, ``report``, ``service`` (gRPC) and
``watch`` (unattended). A clinic's computer needs neither Flower nor Opacus, and nothing here
imports training or privacy. Not here: ``client.segmentation``, which training uses too.
"""
