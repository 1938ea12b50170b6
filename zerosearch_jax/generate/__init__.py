"""Generation: sampling, the jitted programs (extend, fork, decode), the slot engine."""
