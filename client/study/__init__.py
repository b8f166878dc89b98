"""One study at one site: consent, training and scoring, what is kept of it, and what leaves.

``consent`` is the hospital's veto, ``schedule`` what the approved protocol still has room for,
``known_patients`` who the patients are to the ledger, ``round_training`` from a protocol to trained
arrays, ``reported_metrics`` what is measured beside training, ``round_state`` what is kept from one
round to the next, ``charged_files`` how that is bound to the ledger, ``outbound`` the one door
through which anything leaves. ``withdrawal`` and
``restore_reconciliation`` are for the days on which a patient withdraws or a backup is restored;
``model_installation`` takes a released model into use.

Not here: how a step is made private or charged (``client.privacy``), and what people see of a study
(``client.views``).
"""
