"""The published models, and their registry."""
