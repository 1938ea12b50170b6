"""Audits of simulators, and the collection of what they are tuned on."""
