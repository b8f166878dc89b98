"""The site's page for hospital IT: what runs here, what left, and the button that stops it.

``reading`` is what it shows, ``pages`` the page, ``exposition`` the same in numbers for Prometheus,
``machine`` what the computer has left. ``python -m client.page DIR PAGE METRICS`` is the process
that `gliofed-site run --page --metrics` keeps alive, at the lowest priority: the training neither
waits for it nor knows of it. No patient is on it, and no case: numbers of them at most.
"""
