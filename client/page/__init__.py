"""The site's page for hospital IT: what runs here, what left, and the button that stops it.

``site_status`` is what it shows, ``pages`` the page, ``prometheus`` the same in numbers,
``machine_load`` what the computer has left, ``listen_address`` where it is served. ``python -m
client.page DIR PAGE METRICS`` is the process that `gliofed-site run --page --metrics` keeps alive,
at the lowest priority: the training neither waits for it nor knows of it. No patient is on it, and
no case: numbers of them at most.

Not here: sessions and one-time links (``common.web``), and the clinician's page
(``client.review``).
"""
