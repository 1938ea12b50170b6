"""One JSON line a figure; run with nothing else on the machine."""
