"""What a site shows its own people. Nothing of it leaves the hospital, and nothing is changed.

``budget`` and ``budget_chart`` are the privacy spent, ``study_cost`` what a study would cost before
anybody approves it, ``disclosures`` what left, ``journal_audit`` whether the records are whole,
``cohort_check`` what is wrong with the data, ``diagnosis`` and ``compute_check`` what is wrong with
the site and its machine (`gliofed-site doctor`).

Not here: how it is printed (``client.commands.tables``) or served (``client.page``).
"""
