"""The clinic: a released model, a patient's scans, a segmentation. Needs neither Flower nor Opacus."""
