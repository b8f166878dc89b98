"""Patient-level differential privacy: how a step is made private, and what it costs.

``dp_sgd`` is the private training, with ``clipping`` and ``secure_noise``; ``dp_dice`` and
``dp_histograms`` release scores and histograms with noise. ``mechanism`` says what is charged,
``ledger`` keeps it on the site's disk (``ledger_file``, ``patient_exposure``), ``accountant`` turns
it into epsilon (``accounting_cache`` remembers), ``budget_caps`` says what is left. ``audit``
attacks the installed code; ``audit_bound`` is its lower bound on epsilon.

No setting of a device or of speed can change what a study costs. Not here: who consents
(``client.study.consent``) and what people see of the budget (``client.views``).
"""
