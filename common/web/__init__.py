"""Pages of ours: one-time links and sessions, live updates, where they listen, Prometheus.

``auth`` is the one door to a page, with base template, style and script. Not here: what a page
shows (``client.page``, ``client.review``, ``server.reporting.dashboard``).
"""
