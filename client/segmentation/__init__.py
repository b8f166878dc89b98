"""From a network's output to a mask, and how good a mask is; for training and the clinic.

``prediction`` with its ``sliding_window``, ``postprocessing`` and the search for its options,
``calibration`` and ``expected_dice`` of the probabilities. ``scores`` are those of the BraTS
challenges, with ``dice`` and ``surface_distance`` (95 % Hausdorff distance); ``evaluation`` scores
a network on a cohort.

Not here: a result for a clinician (``client.clinic``).
"""
