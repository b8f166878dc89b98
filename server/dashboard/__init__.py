"""The coordinator's dashboard: pages that show what the journal says, and change nothing.

``pages`` are the pages, ``drawing`` their pictures, ``tables`` what can be saved as CSV. The
numbers are those of ``server.report``, by way of ``server.readings``; nothing is computed here.

``python -m server.dashboard DIR PLACE`` is the process that `gliofed-server serve --dashboard`
keeps alive.
"""
