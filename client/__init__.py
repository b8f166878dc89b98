"""The hospital's side of gliofed: site, training under privacy, and the clinic."""
