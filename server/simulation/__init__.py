"""What a study of many sites would cost, found by running its rounds with simulated sites.

Not here: training. A simulated site has no patient and no network.
"""
