"""Orders over Flower, and the only port that faces the internet.

``gateway`` is that port, ``superlink`` Flower's process behind it, ``flower_fleet`` the fleet of
``server.rounds`` over Flower, ``reply_pull`` how it takes in one reply, ``signed_fleet`` what signs
its orders and checks its replies. Not here: what an order says (``common.messages``).
"""
