"""The smallest run that still trains: a recipe for `train.py`."""

from repmlp_jax.training import default_config


def get_config(**changes):
    """Two epochs of 22 steps; a look after every step, so that a run can be stopped at any of them."""
    config = default_config()
    config.dataset = "digits"
    config.model_arguments = dict(
        image_size=(8, 8), in_features=1, widths=(8,), partition_size=(4, 4), conv_kernels=(1, 3)
    )
    config.epochs = 2
    config.batch_size = 64
    config.learning_rate = 0.1
    config.crop_padding = 1
    config.eval_batch_size = 200
    config.checkpoint_every_steps = 5
    config.checkpoint_every_seconds = 0.0
    config.steps_per_call = 1
    for name, value in changes.items():
        config[name] = value
    return config
