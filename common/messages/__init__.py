"""What travels between coordinator and hospital, and the checks on both ends.

``wire_format`` is orders and replies, ``compression`` and ``low_rank`` how an update becomes few
bytes, ``reply_limits`` how large an answer can be. Not here: connections (``server.transport``,
``client.runtime``), and what may leave a hospital (``client.study.outbound``).
"""
