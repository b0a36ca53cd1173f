"""Street scenes: a class for every pixel."""
