"""Questions and passages: rows and their sources, the built-in world and toy, TFDS."""
