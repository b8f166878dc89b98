"""The commands of gliofed-server: what people type and what they read.

``coordinator`` is the program; the others add groups of commands to it. ``supervisor`` is what
`gliofed-server serve` keeps alive. Not here: any decision.
"""
