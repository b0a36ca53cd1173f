"""A small pure MLP on scikit-learn's handwritten digits: real data without a download.

python train.py --config=configs/digits.py

"""

from repmlp_jax.training import default_config


def get_config():
    config = default_config()
    config.dataset = "digits"
    config.model_arguments = dict(
        image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3)
    )
    config.epochs = 20
    config.learning_rate = 0.1
    config.crop_padding = 1
    config.flip = False  # a mirrored 2 is no 2
    config.eval_batch_size = 360
    return config
