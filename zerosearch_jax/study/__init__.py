"""Studies: variants of an experiment with several seeds each, and their report."""
