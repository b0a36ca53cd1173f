"""What can be learned: each task has its data, its loss and its scores, and one loop trains them all.

A task is made from the configuration, the mesh and the seed of the examples' order, and has
`feed` (what `train_steps` are made of), `evaluator`, `scores` (the names of what it measures; `best` is what the best
checkpoint is chosen by), `preprocessing` (what is saved with a model), `make_model(rngs)`, `result(model)` (what of the
trained model is saved, fused and evaluated), `loss(model, batch, key)` and `draw(workdir, model)` (its pictures).
"""


def task_class(name: str) -> type:
    """The task of that name; what it reads data with is imported only then."""
    if name == "faces":
        from repmlp_jax.tasks.faces.task import Faces

        return Faces
    if name == "segmentation":
        from repmlp_jax.tasks.segmentation.task import Segmentation

        return Segmentation
    from repmlp_jax.tasks.classification import Classification

    return Classification
