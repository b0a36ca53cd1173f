"""RepMLP-ResNet-50 on ImageNet, by the recipe of the paper's Section 4.2.

python train.py --config=configs/imagenet_resnet50.py:bottleneck --config.workers=16
python train.py --config=configs/imagenet_resnet50.py:light --config.epochs=0 --config.init_from=FILE   # only evaluate

"""

from repmlp_jax.training import default_config
from repmlp_jax.training.recipe import pick_variant

VARIANTS = {
    "": "RepMLP-Res50-bottleneck-224-g4-8",
    "base": "RepMLP-Res50-base-224",
    "light": "RepMLP-Res50-light-224-g8-16",
    "light_g4": "RepMLP-Res50-light-224",
    "bottleneck": "RepMLP-Res50-bottleneck-224-g4-8",
    "bottleneck_g8": "RepMLP-Res50-bottleneck-224",
    "bottleneck_g8_16": "RepMLP-Res50-bottleneck-224-g8-16",
    "bottleneck_320": "RepMLP-Res50-bottleneck-320-g8-16",
}


def get_config(variant=""):
    config = default_config()
    config.model = pick_variant(VARIANTS, variant, __file__)
    config.model_arguments = dict(dtype="bfloat16")
    config.dataset = "imagenet2012"
    config.epochs = 100
    config.batch_size = 256
    config.eval_batch_size = 256
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.augmentation = "autoaugment"
    config.mixup = 0.2  # the paper does not state its alpha; this is what is usual for ResNet-50
    config.workers = 8
    return config
