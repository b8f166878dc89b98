"""Orders over Flower, and the only port that faces the internet.

``gateway`` is that port; ``node_signature``, ``announcements`` and ``site_allowance`` say which
calls it passes on, and how much. ``superlink`` is Flower's process behind it, ``flower_fleet`` the
fleet of ``server.rounds`` over Flower, ``reply_pull`` how it takes in one reply, ``signed_fleet``
what signs its orders and checks its replies. Not here: what an order says (``common.messages``).
"""
