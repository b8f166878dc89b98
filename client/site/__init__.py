"""The hospital's folder and its machine: what is so whatever study runs.

``folder`` is the folder with all that is in it, ``settings`` what site.toml says (the policy with
its hours among it), ``keys`` and ``key_renewal`` who the site is, ``pseudonyms`` who the patients
are to ledger and journal, ``stop`` and ``preemption`` what makes training wait or end, ``activity``
what runs now, ``execution`` how the machine computes.

Not here: the ledger (``client.privacy``) and anything of one study (``client.study``).
"""
