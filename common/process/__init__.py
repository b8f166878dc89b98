"""Processes of ours: kept alive, logged without a patient's name, behind the right proxy.

``child_processes`` keeps a set of children alive, ``exit_reason`` reads from its log why one ended,
``logs`` and ``supervisor_log`` say what happened, ``proxies`` through which proxy a connection
goes, ``loopback_tls`` how two of them know each other, ``account_environment`` what libraries ask
of the account. Not here: which processes a side
has (each side's ``commands.supervisor``).
"""
