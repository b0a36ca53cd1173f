"""Table 1 of the paper: the pure MLP on CIFAR-10, its ablations, and the Wide ConvNet.

python train.py --config=configs/cifar.py
python train.py --config=configs/cifar.py:wide_convnet

"""

from repmlp_jax.training import default_config
from repmlp_jax.training.recipe import pick_variant

VARIANTS = {
    "": "pure_mlp",
    "wide_convnet": "wide_convnet",
    "no_local": "pure_mlp_no_local",
    "no_global": "pure_mlp_no_global",
    "fc3_conv9": "pure_mlp_fc3_conv9",
    "conv9": "pure_mlp_conv9",
}


def get_config(variant=""):
    config = default_config()
    config.model = pick_variant(VARIANTS, variant, __file__)
    return config
