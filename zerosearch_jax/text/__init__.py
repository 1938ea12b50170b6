"""Tokens: tokenizer, stop-string automaton, typed trajectories."""
