"""Files: saved models, the checkpoints of a run, and the digests that check both."""
