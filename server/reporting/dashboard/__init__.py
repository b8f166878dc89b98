"""The coordinator's dashboard: pages that show what the journal says, and change nothing.

``pages`` are the pages, ``svg_charts`` their pictures, ``csv_tables`` what can be saved as CSV. The
numbers are those of ``server.reporting.study_report``, by way of
``server.reporting.live_status``; nothing is computed here.

``python -m server.reporting.dashboard DIR ADDRESS`` is the process that `gliofed-server serve
--dashboard` keeps alive.
"""
