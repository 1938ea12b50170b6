"""Questions and corpora: the built-in world, files, hub data sets, TFDS."""
