"""Tumour labels and regions, as the BraTS challenges define them since 2023.

A voxel has one *label*; *regions* are unions of labels and are nested: ET in TC in WT.
Networks predict regions; results are stored as labels. Pure numpy.

Source: Baid et al. 2021, "The RSNA-ASNR-MICCAI BraTS 2021 benchmark", arXiv:2107.02314.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MODALITIES: Final = ("t1n", "t1c", "t2w", "t2f")
"""Order of a case's channels: native T1, contrast-enhanced T1, T2, T2-FLAIR."""

MODALITY_NAMES: Final = {
    "t1n": "T1",
    "t1c": "contrast-enhanced T1",
    "t2w": "T2",
    "t2f": "FLAIR",
}

LABELS: Final = {"NCR": 1, "ED": 2, "ET": 3}
"""Necrotic or non-enhancing core, peritumoural oedema, enhancing tumour; 0 is background."""

REGIONS: Final = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
"""Whole tumour, tumour core, enhancing tumour; also the order of a network's output channels."""

LABEL_NAMES: Final = {
    "NCR": "necrotic tumour core",
    "ED": "peritumoural oedema",
    "ET": "enhancing tumour",
}

LABEL_COLOURS: Final = {"NCR": "#d62728", "ED": "#2ca02c", "ET": "#ffbf00"}


LABEL_CODES: Final = {
    "NCR": ("6574001", "SCT", "Necrosis"),
    "ED": ("79654002", "SCT", "Edema"),
    "ET": ("C113842", "NCIt", "Enhancing Lesion"),
}
"""Value, scheme and meaning of each label in SNOMED CT or the NCI Thesaurus."""


def labels_to_regions(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the region masks, shape (3, *labels.shape), in the order of ``REGIONS``."""
    return np.stack([np.isin(labels, values) for values in REGIONS.values()])


def regions_to_labels(regions: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the label map of region masks of shape (3, ...).

    The nesting is enforced from outside in: TC counts only inside WT, ET only inside TC, so that
    every mask that the network can say becomes a valid label map.
    """
    whole, core, enhancing = regions
    labels = np.zeros(whole.shape, np.uint8)
    labels[whole] = LABELS["ED"]
    labels[whole & core] = LABELS["NCR"]
    labels[whole & core & enhancing] = LABELS["ET"]
    return labels
