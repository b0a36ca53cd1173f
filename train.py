"""`repmlp-jax train` for a copy of the repository: `python train.py --help` says more."""

import sys

from repmlp_jax.tasks.program import run

if __name__ == "__main__":
    run(sys.argv)
