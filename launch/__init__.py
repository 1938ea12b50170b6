"""Command lines: flags and wiring only."""
