"""Models at work: programs for other processes and other runtimes, and what a saved classifier says of pictures."""
