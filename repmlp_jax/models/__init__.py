"""The published models, and the registry that knows them by name."""
