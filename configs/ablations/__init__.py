"""Studies: variants of an experiment for launch.sweep; the first one is the baseline."""
