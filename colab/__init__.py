"""Notebooks for people, and what runs them."""
