"""The coordinator's side of gliofed. It never imports torch: it only adds up arrays.

Flower refers to ``app``; ``executor`` is the process that runs it. All else is in rooms, each of
which imports only rooms below it (import-linter's contract ``server``)::

    commands     gliofed-server: what people type
    release      signed models for the clinics, and their revocation
    simulation   what a study of many sites would cost, found by running it
    reporting    what happened in a study: report, charts, dashboard, doctor
    transport    Flower, and the one port that faces the internet
    rounds       the rounds of a study: order, collect, check, quorum, aggregate, resume
    aggregation  the rules that combine updates, one a file
    consortium   who belongs to it: sites, keys, certificates, published studies

Nothing here is imported by ``client``. What hospitals need too is in ``common``.
"""
