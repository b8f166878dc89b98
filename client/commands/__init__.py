"""The commands of gliofed-site and gliofed-clinic: what people type and what they read.

``site`` and ``clinic`` are the two programs; the others add groups of commands to them. A command
reads its options, calls a room and prints what came of it (``tables``); it imports what computes
only once it runs, so that ``--help`` is quick. ``supervisor`` is what `gliofed-site run` keeps
alive.

Not here: any decision. Who may do what, and what it costs, is decided in the rooms below.
"""
