"""Audits of simulators, and the collection of searches on which they are fine-tuned."""
