"""Runs the command line for `python -m repmlp_jax`."""

from repmlp_jax.cli import main

main()
