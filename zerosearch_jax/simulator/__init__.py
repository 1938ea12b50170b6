"""The model that plays the search engine: its requests, its curriculum, and its replacements."""
