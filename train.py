"""Trains a model: python train.py --config=configs/digits.py --workdir=runs/digits --config.epochs=10."""

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py")
WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "folder")


def main(_):
    from repmlp_jax.training import train_and_evaluate

    train_and_evaluate(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
