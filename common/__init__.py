"""Values, rules and tools that coordinator and hospital share; no torch.

What only hospitals use is the client's: images, networks, the privacy ledger. Each room imports
only rooms below it (import-linter's contract ``common``)::

    messages  what travels between coordinator and hospital
    backup    back up a folder, check a backup, restore it
    doctor    what is wrong with a machine, or on the way to the coordinator
    web       pages of ours: sessions, live updates, figures for Prometheus
    trust     keys, signed statements, who speaks for the consortium, enrolment
    process   child processes, logs, proxies
    study     the study protocol and all that it says
    records   files, formats, journal and weights on the disk

``foreign_text`` is where text of the other side is made fit to be shown.

Sockets are opened in ``doctor``, ``process`` and ``web`` alone.
"""

from common.process.account_environment import provide

provide()  # before MONAI, which asks for it, is imported by anyone
