"""`python -m repmlp_jax`."""

from repmlp_jax.cli import main

main()
