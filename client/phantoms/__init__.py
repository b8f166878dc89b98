"""Synthetic hospitals for demonstrations, pre-training and tests.

Phantoms are made, not measured: the average brain of many volunteers, deformed, with a simulated
glioma, imaged by a simulated scanner. They teach a network what a tumour looks like and let a
federation be rehearsed without a patient. They are no evidence about clinical performance.
"""
