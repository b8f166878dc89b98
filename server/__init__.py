"""The coordinator's side of gliofed. It never imports torch: it only adds up arrays."""
