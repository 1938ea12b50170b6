"""ZeroSearch in JAX: reinforcement learning that teaches a language model to search a simulated engine."""

__version__ = '0.2.0'
