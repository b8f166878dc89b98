"""What happened in a study, computed from the journal alone, for people and for programs.

``study_report`` computes, with ``fairness``; the charts, ``markdown_report``, ``tensorboard``,
``prometheus`` and ``dashboard`` show it. ``health`` and ``diagnosis`` say whether the coordinator
itself is well. Nothing here changes a study.
"""
