"""ZeroSearch in JAX: reinforcement learning that teaches a language model to search a simulated engine."""
