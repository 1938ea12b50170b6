"""Generation: sampling, the jitted prefill and decode steps, the slot engine."""
