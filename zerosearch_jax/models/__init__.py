"""Decoder-only transformers as pure functions over parameter trees."""
