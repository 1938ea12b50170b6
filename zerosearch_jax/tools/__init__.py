"""Programs around a trained policy: ask, view, model cards, export, a search server, the configuration reference."""
