"""A site's worker whose training takes no time: only the way there and back is left.

Everything else is the real worker: orders, consent, digests, outbox, journal, reply. The update is
random, so that no transport can skip what it has seen before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from client.site.folder import Site
from client.study import round_training
from client.study.round_state import Trained
from client.worker import Worker
from common.records.weights import Arrays
from common.study.protocol import StudyProtocol


def _no_training(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    *,
    round_number: int,
    control: Arrays | None,
    progress: object,
) -> Trained:
    del protocol, control, progress
    rng = np.random.default_rng([round_number, *site.name.encode()])
    return Trained(
        {
            name: rng.standard_normal(array.shape, np.float32) * np.float32(1e-6)
            for name, array in weights.items()
        }
    )


if __name__ == "__main__":
    round_training.train_round = _no_training
    Worker(Site.open(Path(sys.argv[1]))).run()
