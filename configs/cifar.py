"""Table 1 of the paper: the pure MLP on CIFAR-10, its ablations, and the Wide ConvNet.

python train.py --config=configs/cifar.py
python train.py --config=configs/cifar.py:wide_convnet

"""

from repmlp_jax.training import default_config

VARIANTS = {
    "": "pure_mlp",
    "wide_convnet": "wide_convnet",
    "no_local": "pure_mlp_no_local",
    "no_global": "pure_mlp_no_global",
    "fc3_conv9": "pure_mlp_fc3_conv9",
    "conv9": "pure_mlp_conv9",
}


def get_config(variant=""):
    if variant not in VARIANTS:
        raise ValueError(f"configs/cifar.py has no variant {variant!r}; it has {', '.join(filter(None, VARIANTS))}")
    config = default_config()
    config.model = VARIANTS[variant]
    return config
