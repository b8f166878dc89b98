"""Who belongs to the consortium and what it signed: sites, coordinators, certificates, studies.

``provisioning`` founds it, admits hospitals and publishes studies; ``published_study`` is one of
those on the disk; ``key_rotation`` and ``certificate_expiry`` are for the years after;
``listen_address`` and ``superlink_address`` are where its doors are; ``watched_threads`` is what
the executor's threads say of themselves.

Not here: which hospitals approved a study (``server.rounds.approvals``), and the processes behind
the doors (``server.transport``).
"""
