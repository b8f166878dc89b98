"""The rounds of a study: order, collect, check, quorum, aggregate, record, resume.

``study_scheduler`` says which study runs, ``round_loop`` does its rounds, ``orders`` gives orders
and checks replies through ``fleet``, the seam to the network, within ``fault_boundary``, where the
harm of a reply ends. ``approvals`` says who takes part, ``deadlines`` how long a site is waited
for, ``quorum`` when a round counts, ``late_updates`` what comes after it, ``evaluation_orders``
what is asked beside training. ``journal_heads`` and ``restore_account`` are for backups,
``weight_retention`` for the disk.

Not here: how updates are combined (``server.aggregation``), Flower (``server.transport``), and what
people see of it (``server.reporting``).
"""
