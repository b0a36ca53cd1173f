"""What can be learned: each task has its data, its loss and its scores, and one loop trains them all."""

from repmlp_jax.training.tasks.classification import Classification

TASKS = {"classification": Classification}
