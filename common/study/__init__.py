"""The study protocol: everything that decides what a study does and what it costs, as frozen data.

``protocol`` with its options for aggregation and segmentation, ``amendment`` (what may change while
a study runs), ``cohort_histograms`` (what may be counted), ``network_shapes`` and
``trained_parameters`` (names and shapes, without torch), ``drawn_weights`` (a random start) and
``starting_weights`` (one from a file).

Not here: how a study is carried out (``client.study``, ``server.rounds``).
"""
