"""Images of one patient: what a case is, how it is read, prepared for the network and kept."""
