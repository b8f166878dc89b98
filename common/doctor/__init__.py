"""What `doctor` finds on either side: facts about a machine and a connection, and what they mean.

``machine_facts`` and ``tls_probe`` look, ``machine_checks`` and ``connectivity_report`` judge,
``findings`` are well, a warning or a problem. Not here: what is one side's own
(``client.views.diagnosis``, ``server.reporting.diagnosis``).
"""
