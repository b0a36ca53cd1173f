"""Files: saved models, the checkpoints of a run, and what both are checked by."""
