"""What travels between coordinator and hospital, and the checks on both ends.

``wire_format`` is orders and replies, ``signatures`` who sent them, ``reply_limits`` how large a
reply may be, ``compression`` and ``low_rank`` how an update becomes few bytes. Not here:
connections (``server.transport``, ``client.runtime``), and what may leave a hospital
(``client.study.outbound``).
"""
