"""Tokens and text: tokenizer, stop-string automaton, typed trajectories, the protocol of four tags."""
