"""Training without regard to privacy: crops, augmentation, loss, the loop, the learning rate.

``loop`` also holds what the private loop shares with it; ``drift_correction`` is what a site adds
to its steps where sites differ (FedProx, SCAFFOLD, Ditto).

Not here: clipping, noise and charges (``client.privacy``), and rounds (``client.study``).
"""
