"""The clinic: a released model, one case, its mask. Needs neither Flower nor Opacus."""
