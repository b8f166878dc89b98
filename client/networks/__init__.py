"""The networks that a study may train, and how torch computes them.

``registry`` builds them by name and turns their weights into named arrays. ``padding`` wraps each
network so that volumes of any size fit; ``group_norm`` is exact on large ones; ``cpu_threads`` is
how many threads torch has, which its results depend on; ``weight_conversion`` reads other programs'
weights.

Not here: names and shapes of the parameters, which the coordinator needs without torch
(``common.study.network_shapes``).
"""

import common  # noqa: F401 - gives MONAI what it asks of the account, before it is imported
