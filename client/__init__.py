"""The hospital's side of gliofed: training under privacy at a site, and segmentation in the clinic.

Flower loads ``app`` by name; ``worker`` is the process that runs it. All else is in rooms, each of
which imports only rooms below it (import-linter's contract ``client``)::

    commands       gliofed-site and gliofed-clinic: what people type
    page           the site's page for hospital IT, and its figures for Prometheus
    runtime        the SuperNode, and what is done with an order
    views          what a site shows its own people: budget, journal, cost of a study, doctor
    rehearsal      a study on phantoms, before there is one on patients
    study          what a site does for one study, and what of it may leave
    review         the page on which a person corrects a mask
    clinic         a released model, one patient's MRI, its mask and report
    privacy        DP-SGD, accounting, the ledger, the empirical audit
    segmentation   from a network's output to a mask, and how good a mask is
    training       the ordinary training loop
    cohort         which patients and which scans
    site           the hospital's folder: settings, keys, stop, devices
    imaging        one patient's images, read and preprocessed
    networks       the networks that a study may train
    phantoms       made-up patients

Nothing here is imported by ``server``. What the coordinator needs too is in ``common``.
"""
