"""A site that runs: Flower's SuperNode, and what is done with each order that comes through it.

``supernode`` is the process that holds the connection to the coordinator; ``authentic_orders``
finds out whether an order is the coordinator's, ``order_handler`` checks it, carries it out and
answers. ``client.worker`` is the process that runs it.

Not here: how a study trains or scores (``client.study``), and what may leave (its ``outbound``).
"""
