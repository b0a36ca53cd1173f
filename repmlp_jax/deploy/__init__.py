"""Deployment: programs for other processes and other runtimes, and predictions of saved classifiers."""
